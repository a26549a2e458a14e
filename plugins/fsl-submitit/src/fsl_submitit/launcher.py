"""The runs of a sweep as jobs of Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import fsl_core as fsl
from fsl_submitit.job import PATIENCE, Compute

FOLDER = ".submitit"
"""Where submitit keeps scripts, logs and results of jobs, beside the runs."""

LONGEST_ARRAY = 1000
"""Jobs of one array; Slurm takes 1001 where nobody has changed it."""

SHARED_FOLDER_DELAY = 15.0
"""Seconds in which a file that another machine wrote can be seen on a network file system."""

READ_EVERY = 5.0
"""Seconds between two looks at the queue; less than the delay above."""


class Slurm(fsl.Launcher):
    """Jobs of Slurm, one for each run, begun as an array by submitit.

    Each job is a worker of its run: it claims the run, goes on from the last checkpoint, and says
    in the run's directory how it ended. Before a job's limit of time the run saves, and the job is
    put in the queue again, up to three times. The folder of the sweep, this Python and its packages
    have to be on a file system that all machines share.

    A sweep that is stopped leaves its jobs; the same command finds them again, by the job ids in
    the run directories. `fsl sweep RECIPE --launcher slurm --stop` ends them, as does `scancel`.

    Source: submitit, github.com/facebookincubator/submitit.
    """

    name = "slurm"

    def __init__(
        self,
        cluster: Annotated[
            Literal["slurm", "local", "debug"],
            Field(
                description="local: processes of this machine in place of jobs, to try it out; "
                "debug: in this process"
            ),
        ] = "slurm",
        partition: Annotated[str | None, Field(description="where jobs wait and run")] = None,
        account: Annotated[str | None, Field(description="whose budget is charged")] = None,
        qos: Annotated[str | None, Field(description="quality of service")] = None,
        minutes: Annotated[int, Field(gt=0, description="limit of time of a job")] = 240,
        cpus: Annotated[int, Field(gt=0, description="cores of a job")] = 1,
        memory: Annotated[float, Field(gt=0, description="of a job, in GB")] = 8.0,
        gpus: Annotated[int, Field(ge=0, description="of a job")] = 0,
        jobs: Annotated[int, Field(gt=0, description="of an array that run at a time")] = 256,
        setup: Annotated[
            list[str], Field(description="shell commands before a job, such as module load")
        ] = [],  # noqa: B006  # nobody changes it
        more: Annotated[
            dict[str, str | int],
            Field(description="further options of sbatch, such as {constraint: a100}"),
        ] = {},  # noqa: B006
    ):
        self._cluster, self._setup = cluster, setup
        self._parameters: dict[str, Any] = {
            "name": "fsl",
            "timeout_min": minutes,
            "cpus_per_task": cpus,
            "mem_gb": memory,
            "gpus_per_node": gpus,
            "slurm_array_parallelism": jobs,
            "slurm_signal_delay_s": int(2 * PATIENCE),
            "slurm_setup": [*setup, f"export OMP_NUM_THREADS={cpus}"],
            "slurm_additional_parameters": dict(more),
        }
        named = {"slurm_partition": partition, "slurm_account": account, "slurm_qos": qos}
        self._parameters |= {key: value for key, value in named.items() if value is not None}
        self._jobs: dict[Path, Any] = {}
        self._ended: dict[Path, float] = {}
        self._queue: set[str] = set()
        self._read = -READ_EVERY

    def start(self, work: Sequence[fsl.Work]) -> None:
        if self._cluster == "slurm" and shutil.which("sbatch") is None:
            raise fsl.FslError(
                "launcher slurm: sbatch is not here. A machine of a Slurm cluster, or "
                "-s launcher.cluster=local"
            )
        for first in range(0, len(work), LONGEST_ARRAY):
            self._submit(work[first : first + LONGEST_ARRAY])

    def _submit(self, work: Sequence[fsl.Work]) -> None:
        import submitit

        computed = [Compute(one.command, one.output) for one in work]
        try:
            executor = submitit.AutoExecutor(_folder(work[0].run), cluster=self._cluster)
            executor.update_parameters(**self._parameters)
            jobs = executor.submit_array(computed)
        except (RuntimeError, ValueError, NameError, submitit.core.utils.FailedJobError) as error:
            told = " ".join(str(error).split())[:500]
            raise fsl.FslError(
                f"launcher slurm: {told}. Options that this cluster takes"
            ) from error
        for one, job in zip(work, jobs, strict=True):
            self._jobs[one.run] = job
            self.remember(one.run, job.job_id)

    def poll(self, run: Path) -> fsl.Ended | None:
        job = self._jobs[run]
        if self._cluster == "debug" or job.paths.result_pickle.exists():
            return _outcome(job)
        if self._cluster == "slurm" and self._waits_or_runs(job.job_id):
            self._ended.pop(run, None)
            return None
        if self._cluster == "local" and not job.done():
            return None
        ended = self._ended.setdefault(run, time.monotonic())
        if time.monotonic() - ended < SHARED_FOLDER_DELAY and self._cluster == "slurm":
            return None
        state = _state(job.job_id) if self._cluster == "slurm" else job.state
        return fsl.Ended(1, f"job {job.job_id}: {state}. Its log is in {job.paths.folder}")

    def _waits_or_runs(self, number: str) -> bool:
        """squeue knows it, unlike sacct, on clusters that keep no accounts too."""
        if time.monotonic() - self._read > READ_EVERY:
            told = _told("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i")
            if told is None:  # a controller that is busy or begun anew: nothing is known
                return True
            self._queue, self._read = set(told.split()), time.monotonic()
        return number in self._queue

    def stop(self, runs: Sequence[Path]) -> None:
        for run in runs:
            if run in self._jobs:
                self._jobs[run].cancel(check=False)

    def find(self, run: Path) -> bool:
        import submitit

        number = self.remembered(run)
        if number is None or self._cluster == "debug":
            return False
        if self._cluster == "slurm":
            if shutil.which("squeue") is None:
                return False
            job: Any = submitit.SlurmJob(_folder(run), number)
            alive = not job.paths.result_pickle.exists() and self._waits_or_runs(number)
        else:
            # submitit knows a local job by the object of its process alone
            process: Any = _Process(int(number))
            job = submitit.LocalJob(_folder(run), number, process=process)
            alive = process.poll() is None
        if alive:
            self._jobs[run] = job
        return alive


class _Process:
    """A process that another one has begun, as far as submitit asks for it."""

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        except PermissionError:  # the number is somebody else's by now
            return 0
        return None

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(OSError):
            os.kill(self.pid, number)


def _folder(run: Path) -> Path:
    return run.parent / FOLDER


def _told(*command: str) -> str | None:
    """What a program of Slurm prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _state(number: str) -> str:
    """How Slurm says that a job ended, such as TIMEOUT."""
    told = _told("sacct", "--noheader", "--allocations", "--format=State", f"--jobs={number}")
    return " ".join((told or "").split()) or "no longer in the queue, and has said nothing"


def _outcome(job: Any) -> fsl.Ended:
    """How a job ended that says so itself."""
    try:
        return fsl.Ended(int(job.result()))
    except Exception as error:  # submitit's own kinds, and whatever cannot be read back
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        return fsl.Ended(1, f"job {job.job_id}: {lines[0] if lines else type(error).__name__}")

"""Runs the cells of a sweep in processes of their own; finished ones are kept, unfinished ones continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from filelock import FileLock, Timeout

from fsl_core.config.matrix import Cell
from fsl_core.errors import FslError
from fsl_core.training.files import METRICS, RESULT, parse_record

OUTPUT = "output.txt"
POLLED_EVERY = 0.2
PATIENCE = 20.0


@dataclass
class Job:
    """One cell and its run directory.

    state: `elsewhere`: another process is writing to this run, and is waited for.    error: the last line a failed run wrote.
    seconds: that this process has spent on it.
    """

    cell: Cell
    directory: Path
    state: Literal["waiting", "running", "elsewhere", "finished", "failed"] = "waiting"
    error: str = ""
    seconds: float = 0.0
    _process: subprocess.Popen | None = None
    _output: IO[bytes] | None = None
    _started: float = field(default=0.0, repr=False)

    @property
    def step(self) -> int:
        """Outer steps done, as far as they have been written."""
        return last_step(self.directory / METRICS)


def last_step(metrics: Path) -> int:
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next(
        (record["step"] for line in reversed(lines) if "step" in (record := parse_record(line))), 0
    )


def make_jobs(cells: Iterable[Cell], runs: Path) -> list[Job]:
    """A job for each cell. Its directory is found by the digest of the recipe, however the cell was titled when it began."""
    jobs = []
    for cell in cells:
        existing = sorted(runs.glob(f"*-{cell.digest}"))
        directory = existing[0] if existing else runs / cell.directory_name
        jobs.append(
            Job(cell, directory, "finished" if (directory / RESULT).is_file() else "waiting")
        )
    return jobs


def threads_of(workers: int) -> int:
    """Threads for each of so many processes: OMP_NUM_THREADS where it is set, or an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return int(told) if told.isdigit() and int(told) else max(1, cores // workers)


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    prepare: Callable[[Job], None],
    options: Sequence[str] = (),
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Run what is not finished, `workers` at a time, and keep going past a failed one. Interrupted, it stops its processes.

    prepare: makes the run directory of a cell that has none, so that `fsl resume` begins or continues it.
    options: further arguments of `fsl resume`.
    on_change: called a few times a second.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(workers))}
    try:
        while any(job.state in ("waiting", "running", "elsewhere") for job in jobs):
            for job in jobs:
                if job.state == "running":
                    _look_after(job)
                elif (
                    job.state in ("waiting", "elsewhere")
                    and sum(j.state == "running" for j in jobs) < workers
                ):
                    _begin(job, prepare, options, environment)
            on_change()
            time.sleep(POLLED_EVERY)
    finally:
        _stop(jobs)
        on_change()


def _begin(
    job: Job, prepare: Callable[[Job], None], options: Sequence[str], environment: dict[str, str]
) -> None:
    if _locked(job.directory):
        job.state = "elsewhere"
        return
    if (job.directory / RESULT).is_file():
        job.state = "finished"
        return
    try:
        prepare(job)
        job._output = (job.directory / OUTPUT).open("wb")
    except (FslError, OSError) as error:
        job.state, job.error = "failed", " ".join(str(error).split())
        return
    command = [sys.executable, "-m", "fsl_core", "resume", str(job.directory), *options]
    job._process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=job._output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others
    )
    job.state, job._started = "running", time.monotonic()


def _look_after(job: Job) -> None:
    job.seconds = time.monotonic() - job._started
    code = job._process.poll()
    if code is None:
        return
    job._output.close()
    if code == 0 and (job.directory / RESULT).is_file():
        job.state = "finished"
    elif _locked(job.directory):  # somebody else was quicker
        job.state = "elsewhere"
    else:
        job.state, job.error = "failed", _last_words(job.directory / OUTPUT, code)


def _last_words(output: Path, code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}. More memory or fewer --jobs, if nobody stopped it"
    lines = [
        line.strip()
        for line in output.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1] if lines else f"exit status {code}"


def _locked(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    try:
        with FileLock(directory / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _stop(jobs: Iterable[Job]) -> None:
    """End what still runs; a run continues exactly from its last checkpoint, whenever it is ended."""
    running = [job for job in jobs if job.state == "running"]
    for job in running:
        job._process.terminate()
    deadline = time.monotonic() + PATIENCE
    for job in running:
        try:
            job._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job._process.kill()
            job._process.wait()
        job._output.close()
        job.state = "waiting"

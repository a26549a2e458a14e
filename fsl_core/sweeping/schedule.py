"""Runs the cells of a sweep in processes of their own; finished ones are kept, begun ones go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from fsl_core.config.matrix import Cell
from fsl_core.errors import FslError
from fsl_core.files.writing import open_to_fill
from fsl_core.runs.files import METRICS, RESULT, parse_record, writing
from fsl_core.runs.opening import IN_USE
from fsl_core.sweeping.processes import Process, Processes

OUTPUT = "output.txt"
CLAIMS = ".claims"
POLLED_EVERY = 0.05


@dataclass
class Job:
    """One cell and its run directory.

    state: `elsewhere` means that another process works on this run, and is waited for.
    error: why a run failed, in the last line that it wrote.
    seconds: how long this process has worked on it.
    """

    cell: Cell
    directory: Path
    state: Literal["waiting", "running", "elsewhere", "finished", "failed"] = "waiting"
    error: str = ""
    seconds: float = 0.0
    _process: Process | None = None
    _claim: FileLock | None = None
    _started: float = field(default=0.0, repr=False)

    @property
    def step(self) -> int:
        """Outer steps done, as far as they have been written."""
        return last_step(self.directory / METRICS)

    @property
    def has_result(self) -> bool:
        """A result counts, whoever wrote it."""
        return (self.directory / RESULT).is_file()

    def claim(self) -> bool:
        """Whether this sweep alone may work on the run: no other one does, nor does `fsl resume`.

        The lock of the run itself is taken by the process that trains. Sweeps look at this one
        instead, because to try that one for a moment could keep such a process out.
        """
        lock = FileLock(self.directory.parent / CLAIMS / self.cell.digest, timeout=0)
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._claim = lock
        if _locked(self.directory):
            self.release()
            return False
        return True

    def release(self) -> None:
        if self._claim is not None:
            with suppress(OSError):  # its folder may be gone
                self._claim.release()
            self._claim = None


def last_step(metrics: Path) -> int:
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):  # the last one may be half written
        record = parse_record(line)
        if "step" in record:
            return record["step"]
    return 0


def make_jobs(cells: Iterable[Cell], runs: Path) -> list[Job]:
    """A job for each cell.

    Its directory is found by the digest of the recipe, whatever the cell's title was when it began.
    """
    jobs = []
    for cell in cells:
        existing = sorted(runs.glob(f"*-{cell.digest}"))
        job = Job(cell, existing[0] if existing else runs / cell.directory_name)
        job.state = "finished" if job.has_result else "waiting"
        jobs.append(job)
    return jobs


@contextmanager
def only_writer(runs: Path) -> Iterator[None]:
    """Two sweeps that have waited for one last run write their tables one after the other."""
    with writing(runs):
        (runs / CLAIMS).mkdir(parents=True, exist_ok=True)
    with FileLock(runs / CLAIMS / "tables"):
        yield


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    prepare: Callable[[Job], None],
    processes: Processes,
    options: Sequence[str] = (),
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Run what is not finished, `workers` at a time, and keep going past a failed one.

    What another sweep works on is waited for. Interrupted, it stops the processes it has started.

    prepare: makes the run directory of a cell that has none, so that `fsl resume` begins it.
    processes: starts the processes. It is closed at the end.
    options: further arguments of `fsl resume`.
    on_change: called several times a second.
    """
    try:
        while unfinished := [job for job in jobs if job.state not in ("finished", "failed")]:
            for job in unfinished:
                if job.state == "running":
                    _look_after(job)
                elif job.has_result:
                    job.state = "finished"
                elif sum(other.state == "running" for other in jobs) < workers:
                    _begin(job, prepare, processes, options)
            on_change()
            time.sleep(POLLED_EVERY)
    finally:
        processes.close()  # before the claims go: another sweep must not take up what still runs
        for job in jobs:
            job.release()
            if job.state == "running":
                job.state = "waiting"
        on_change()


def _begin(
    job: Job, prepare: Callable[[Job], None], processes: Processes, options: Sequence[str]
) -> None:
    with _failing(job):
        if not job.claim():
            job.state = "elsewhere"
            return
        if job.has_result:  # written between the look and the claim
            job.state = "finished"
        else:
            prepare(job)
            open_to_fill(job.directory / OUTPUT).close()  # refuses a link that came with it
            arguments = ["resume", str(job.directory), *options]
            job._process = processes.start(arguments, job.directory / OUTPUT)
            job.state, job._started = "running", time.monotonic()
    if job.state != "running":
        job.release()


@contextmanager
def _failing(job: Job) -> Iterator[None]:
    """An error in here is the job's, and the sweep goes on."""
    try:
        yield
    except (FslError, OSError) as error:
        job.state, job.error = "failed", " ".join(str(error).split())


def _look_after(job: Job) -> None:
    job.seconds = time.monotonic() - job._started
    assert job._process is not None  # a running job has one
    code = job._process.poll()
    if code is None:
        return
    said = "" if code == 0 else _last_words(job, code)
    if job.has_result:
        job.state, job.error = "finished", said
    elif IN_USE in said:  # `fsl resume`, called by somebody, was quicker
        job.state = "elsewhere"
    else:
        job.state, job.error = "failed", said or f"no {RESULT}. {_gone(job)}"
    job.release()


def _last_words(job: Job, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}. More memory or fewer --jobs, if nobody stopped it"
    try:
        text = (job.directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _gone(job)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {code}"


def _gone(job: Job) -> str:
    if job.directory.is_dir():
        return f"{job.directory}: files of the run were deleted. The same command runs it again"
    return f"{job.directory}: deleted while it ran. The same command runs it again"


def _locked(directory: Path) -> bool:
    """Whether a process holds the lock of a run."""
    if not (directory / ".lock").is_file():
        return False
    try:
        with FileLock(directory / ".lock", timeout=0):
            return False
    except Timeout:
        return True

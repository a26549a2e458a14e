"""Has a launcher run what is not finished; finished runs are kept, begun ones go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fsl_core.errors import FslError, RunError
from fsl_core.files.locks import only_one
from fsl_core.files.writing import open_to_fill
from fsl_core.launcher import Ended, Launcher, Work
from fsl_core.runs.files import IN_USE, RESULT, writing
from fsl_core.sweeping.jobs import Prepared

POLLED_EVERY, QUEUE_POLLED_EVERY = 0.05, 1.0
"""Seconds between two looks at processes of this machine, and at jobs that a queue holds."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Two sweeps that have waited for one last run write their tables one after the other."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder / ".tables", timeout=-1):
        yield


def run_jobs(
    jobs: Sequence[Prepared],
    launcher: Launcher,
    work: Callable[[Prepared], Work],
    on_change: Callable[[], None] = lambda: None,
    worker: bool = False,
    more: Callable[[], None] = lambda: None,
) -> None:
    """Have the launcher run what is not finished, and keep going past a failed run.

    Interrupted, or at its end, it closes the launcher, which stops what cannot outlive it.

    work: what to start for a run.
    on_change: called after every look at the runs.
    worker: leave what has failed elsewhere, and end when nothing is free and every other process
        at work has been seen alive: what a dead one has claimed is taken over. Else what others
        work on is waited for, and begun here if it ends without a result.
    more: called before runs are begun, and may add some to `jobs`.
    """
    try:
        looked_for: set[Path] = set()
        while unfinished := _unfinished(jobs):
            for job in unfinished:
                if job.run not in looked_for and launcher.find(job.run):
                    job.begin()
                looked_for.add(job.run)
                if job.state == "running":
                    _look_after(job, launcher)
                elif job.state == "elsewhere" and job.due and job.has_result:
                    job.state = "finished"  # of the others it is seen when they are to begin
            more()
            _begin(jobs, launcher, work, worker)
            on_change()
            if worker and all(job.alive for job in _unfinished(jobs)):
                break
            time.sleep(QUEUE_POLLED_EVERY if launcher.outlives else POLLED_EVERY)
    finally:
        launcher.close()  # before the claims go: another sweep must not take up what still runs
        for job in jobs:
            job.claim.release()
            if job.state == "running":
                job.state = "waiting"
        on_change()


def _unfinished(jobs: Sequence[Prepared]) -> list[Prepared]:
    return [job for job in jobs if job.state not in ("finished", "failed")]


def _begin(
    jobs: Sequence[Prepared],
    launcher: Launcher,
    work: Callable[[Prepared], Work],
    worker: bool,
) -> None:
    """Start as many as the launcher takes, all of them at once."""
    running = sum(job.state == "running" for job in jobs)
    room = len(jobs) if launcher.at_once is None else launcher.at_once - running
    begun: list[Prepared] = []
    for job in _unfinished(jobs):
        if len(begun) >= room:
            break
        if job.state != "running" and job.due:
            with _failing([job]):
                if _may_begin(job, launcher, worker):
                    begun.append(job)
    if not begun:
        return
    with _failing(begun, (OSError,)):  # a launcher that cannot start at all ends the sweep
        launcher.start([work(job) for job in begun])
        for job in begun:
            job.begin()
    for job in begun:
        if job.state != "running":
            job.claim.release()


def _may_begin(job: Prepared, launcher: Launcher, worker: bool) -> bool:
    if not job.directory.is_dir():  # to claim it would make it again, with nothing in it
        raise RunError(_gone(job))
    if launcher.outlives:  # the process that trains claims its run, which has not begun
        if not job.is_free():
            job.leave()
            return False
    elif not job.take():
        return False
    if job.has_result:  # written between the look and the claim
        job.state = "finished"
    elif worker and (failure := job.failure):
        job.state, job.error = "failed", failure
    if job.state in ("finished", "failed"):
        job.claim.release()
        return False
    job.forget_failure()
    open_to_fill(work_output(job)).close()  # refuses a link that came with it
    return True


def work_output(job: Prepared) -> Path:
    """The file that takes what the process of a run prints."""
    return Work(job.directory, ()).output


@contextmanager
def _failing(
    jobs: Sequence[Prepared], kinds: tuple[type[Exception], ...] = (FslError, OSError)
) -> Iterator[None]:
    """An error in here is that of these runs, and the sweep goes on."""
    try:
        yield
    except kinds as error:
        for job in jobs:
            job.fail(" ".join(str(error).split()))
            job.claim.release()


def _look_after(job: Prepared, launcher: Launcher) -> None:
    job.count()
    if launcher.outlives and (job.has_result or job.failure):
        ended = Ended(0)  # its queue may tell it much later
    elif job.claim.lost:  # another one works on it now, or its directory was deleted
        launcher.stop([job.run])
        ended = Ended(1, _gone(job) if not job.directory.is_dir() else IN_USE)
    elif (found := launcher.poll(job.run)) is None:
        return
    else:
        ended = found
    _end(job, ended, launcher)
    job.claim.release()


def _end(job: Prepared, ended: Ended, launcher: Launcher) -> None:
    said = "" if ended.code == 0 else ended.reason or _last_words(job, ended.code)
    if job.has_result:
        job.state, job.error = "finished", said
    elif IN_USE in said:  # `fsl resume`, called by somebody, was quicker
        job.leave()
    elif launcher.outlives and job.failure:
        job.fail(job.failure)
    elif launcher.outlives and not said and job.holder:
        job.leave()
    else:
        job.fail(said or f"no {RESULT}. {_gone(job)}")


def _last_words(job: Prepared, code: int) -> str:
    try:
        text = work_output(job).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _gone(job)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {code}"


def _gone(job: Prepared) -> str:
    if job.directory.is_dir():
        return f"{job.directory}: files of the run were deleted. The same command runs it again"
    return f"{job.directory}: deleted while it ran. The same command runs it again"

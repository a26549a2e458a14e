"""How the runs of a sweep stand, as their directories say. No lock is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsl_core.launcher import launched
from fsl_core.sweeping.jobs import Prepared, find_jobs


@dataclass(frozen=True)
class Standing:
    """One run.

    state: waiting, queued (a launcher has a job for it), running, silent (whoever runs it has not
        said so for long), failed or finished.
    where: host and process, or launcher and job.
    step:  outer steps done.
    error: first line of what ended it.
    """

    run: str
    state: str
    where: str
    step: int
    error: str


def standings(folder: Path, take_over: float) -> Iterator[Standing]:
    """Every run of a sweep's folder, in order of their names. RunError if there is none."""
    return (standing(job) for job in find_jobs(folder, take_over))


def standing(job: Prepared) -> Standing:
    """How one run stands, in the state in which it was found."""
    state: str = job.state
    where = ""
    if state == "waiting":
        if holder := job.holder:
            state = "silent" if holder.silent > job.take_over else "running"
            where = f"{holder.host} {holder.process}"
        elif any(launched(job.directory)):
            state, where = "queued", " ".join(launched(job.directory))
    return Standing(job.title, state, where, job.step, job.error)

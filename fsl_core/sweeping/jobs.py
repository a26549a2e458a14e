"""The runs of a sweep: their directories, which are all that is known of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fsl_core.config.matrix import Cell
from fsl_core.errors import RunError
from fsl_core.files.locks import Claim, Holder, is_locked
from fsl_core.launcher import TAKE_OVER
from fsl_core.runs.files import LOCK, METRICS, RECIPE, RESULT, parse_record, write_atomically
from fsl_core.runs.trial import describe, is_done, is_trained

CLAIM = ".claim"
"""Who works on a run, in its directory."""

FAILURE = "failed.txt"
"""Why a run has failed, in its directory, until it is begun again."""

LOOKED_EVERY = 1.0
"""Seconds between two looks at a run that another process works on."""


@dataclass(kw_only=True)
class Prepared:
    """A run directory that somebody is to work on, and what has become of it.

    state: `elsewhere` means that another process works on this run, and is waited for.
    error: why a run failed, in the last line that it wrote.
    seconds: how long this process has worked on it.
    take_over: seconds of silence after which another process's run is taken over.
    """

    directory: Path
    state: Literal["waiting", "running", "elsewhere", "finished", "failed"] = "waiting"
    error: str = ""
    seconds: float = 0.0
    take_over: float = TAKE_OVER
    _started: float = field(default=0.0, repr=False)
    _look_again: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.claim = Claim(self.directory / CLAIM, self.take_over)
        self._seen: tuple[object, float] | None = None
        self.alive = False

    @property
    def title(self) -> str:
        """The words of its directory's name."""
        return re.sub(r"-[0-9a-f]{10}$", "", self.directory.name)

    @property
    def run(self) -> Path:
        """Its directory as launchers know it."""
        return self.directory.absolute()

    @property
    def step(self) -> int:
        """Outer steps done, as far as they have been written."""
        return last_step(self.directory / METRICS)

    @property
    def steps(self) -> int | None:
        """Outer steps that it is to take, if its recipe has been read."""
        return None

    @property
    def has_result(self) -> bool:
        """A result counts, whoever wrote it; of a trial of a search, how it ended."""
        return is_done(self.directory)

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        return f"{self.state}: {self.error}" if self.error else self.state

    @property
    def failure(self) -> str:
        """Why it has failed, as its directory says; "" if it has not."""
        with suppress(OSError):
            text = (self.directory / FAILURE).read_text(encoding="utf-8", errors="replace")
            return " ".join(text.split())
        return ""

    @property
    def due(self) -> bool:
        """Whether it may be looked at: not yet, if another process had it a moment ago."""
        return time.monotonic() >= self._look_again

    def take(self) -> bool:
        """Whether this process alone may work on the run: no sweep does, nor does `fsl resume`.

        The lock of the run itself is taken by the process that trains. Sweeps look at the claim
        instead, because to try that lock for a moment could keep such a process out.
        """
        if not self.claim.take():
            self.leave()
            return False
        if is_locked(self.directory / LOCK):
            self.claim.release()
            self.leave()
            self.alive = True  # a dead process holds no lock
            return False
        return True

    def leave(self) -> None:
        """Another process works on it. It is `alive` once it has renewed its claim."""
        self.state, self._look_again = "elsewhere", time.monotonic() + LOOKED_EVERY
        seen = self._renewed()
        if self._seen is None or self._seen[0] is None:
            self._seen = seen, time.monotonic()
        self.alive = seen is not None and seen != self._seen[0]

    def is_free(self) -> bool:
        """Whether nobody has claimed it, or whoever has is silent; nothing is taken."""
        seen = self._renewed()
        if seen is None:
            return not is_locked(self.directory / LOCK)
        if self._seen is None or self._seen[0] != seen:
            self._seen = seen, time.monotonic()
        return time.monotonic() - self._seen[1] > self.take_over

    def _renewed(self) -> object:
        with suppress(OSError):
            found = self.claim.path.stat()
            return found.st_ino, found.st_mtime_ns
        return None

    @property
    def holder(self) -> Holder | None:
        """Who has claimed it."""
        return self.claim.holder

    def begin(self) -> None:
        """It is begun now, by this process or by what it has started."""
        self.state, self._started, self.error = "running", time.monotonic(), ""

    def count(self) -> None:
        """Note how long this process has worked on it."""
        self.seconds = time.monotonic() - self._started

    def forget_failure(self) -> None:
        (self.directory / FAILURE).unlink(missing_ok=True)

    def fail(self, error: str) -> None:
        """It has failed, and its directory says so to whoever looks for free runs."""
        self.state, self.error = "failed", error
        if self.directory.is_dir():
            with suppress(RunError, OSError):  # a full disk: the table says it all the same
                write_atomically(self.directory / FAILURE, f"{error}\n")


@dataclass(kw_only=True)
class Job(Prepared):
    """One cell of a sweep and its run directory."""

    cell: Cell

    @property
    def title(self) -> str:
        return self.cell.title

    @property
    def steps(self) -> int:
        return self.cell.recipe.sections.outer.steps


@dataclass(kw_only=True)
class TrialJob(Job):
    """A trial as a run, or its test. number: of the trial that made the run."""

    method: str
    number: int
    test: bool = False

    @property
    def title(self) -> str:
        return f"{self.method}, {'test of ' if self.test else ''}trial {self.number}"

    @property
    def has_result(self) -> bool:
        """Of a trial the end of its training, also while its test is computed."""
        return (self.directory / RESULT).is_file() if self.test else is_trained(self.directory)

    @property
    def ended(self) -> str:
        if self.state == "failed" or self.test:
            return super().ended
        return describe(self.directory)


def make_jobs(cells: Iterable[Cell], runs: Path, take_over: float = TAKE_OVER) -> list[Job]:
    """A job for each cell.

    Its directory is found by the digest of the recipe, whatever the cell's title was when it began.
    """
    known = {path.name[-10:]: path for path in sorted(runs.glob("*-*"), reverse=True)}
    jobs = []
    for cell in cells:
        directory = known.get(cell.digest, runs / cell.directory_name)
        job = Job(cell=cell, directory=directory, take_over=take_over)
        job.state = "finished" if job.has_result else "waiting"
        jobs.append(job)
    return jobs


def find_jobs(folder: Path, take_over: float = TAKE_OVER) -> list[Prepared]:
    """The prepared runs in a sweep's folder, or the one run that the folder is.

    Each has the state in which it was left. RunError if there is no run.
    """
    if (folder / RECIPE).is_file():
        runs = [folder]
    else:
        runs = sorted(path.parent for path in folder.glob(f"runs/*/{RECIPE}"))
    if not runs:
        raise RunError(
            f"{folder}: no runs here. The folder of a sweep; `fsl sweep RECIPE --prepare` makes one"
        )
    return [found_job(run, take_over) for run in runs]


def found_job(run: Path, take_over: float = TAKE_OVER) -> Prepared:
    """A run directory with the state in which it was left."""
    job = Prepared(directory=run.absolute(), take_over=take_over)
    job.error = job.failure
    job.state = "finished" if job.has_result else "failed" if job.error else "waiting"
    return job


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

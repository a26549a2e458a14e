"""A launcher: where the runs of a sweep are computed, and by what."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from fsl_core.errors import FslError
from fsl_core.files.writing import write_file

OUTPUT = "output.txt"
"""What the process of a run printed, in the directory of the run."""

TAKE_OVER = 60.0
"""Seconds of silence after which a run of another process is taken over."""

LAUNCHED = "launched.json"
"""Which job of a launcher is to compute a run, in the directory of the run."""


@dataclass(frozen=True)
class Work:
    """A run that a launcher starts.

    run:         its directory, an absolute path.
    arguments:   of `fsl`.
    environment: variables of the process, beside those that it inherits.
    """

    run: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The command line of a process that computes the run; it goes on with what was begun."""
        return [sys.executable, "-m", "fsl_core", *self.arguments]

    @property
    def output(self) -> Path:
        """The file that takes what the process prints."""
        return self.run / OUTPUT


class Ended(NamedTuple):
    """How a started run ended.

    code:   of its process, 0 if it did what it had to.
    reason: what the launcher knows of it, such as a limit of time; "" if only the process knows.
    """

    code: int
    reason: str = ""


class Launcher:
    """Starts the runs of a sweep, tells when they have ended, and stops them.

    Subclasses set `name` and write `start`, `poll` and `stop`. The options are the arguments of the
    constructor. A launcher moves no data: a run finds all it needs in its directory, which every
    machine that computes runs has to see under the same path.

    outlives: what it starts goes on after the sweep has ended, and the next sweep finds it by
        `find`. If False, the sweep stops what still runs when it ends.
    at_once:  runs that it takes at a time; None: all there are, because it has a queue.
    """

    name: ClassVar[str]
    outlives: ClassVar[bool] = True
    at_once: int | None = None

    def start(self, work: Sequence[Work]) -> None:
        """Begin these runs, or put them in a queue, and return at once.

        A process has `Work.command` as its command line, and what it prints goes to `Work.output`.
        FslError if none of them can be begun.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.start: not written. A method start(self, work)"
        )

    def poll(self, run: Path) -> Ended | None:
        """None while a started run waits or runs, then how it ended. Called every second or so."""
        raise NotImplementedError(
            f"{type(self).__name__}.poll: not written. A method poll(self, run) -> Ended or None"
        )

    def stop(self, runs: Sequence[Path]) -> None:
        """End these runs, in a queue or running; a process gets SIGTERM and time to save."""
        raise NotImplementedError(
            f"{type(self).__name__}.stop: not written. A method stop(self, runs)"
        )

    def find(self, run: Path) -> bool:
        """Whether a job that an earlier sweep began for this run still waits or runs.

        If so, `poll` and `stop` know it from now on. See `remember`.
        """
        return False

    def close(self) -> None:
        """Called at the end of the sweep. What outlives it goes on."""

    def note(self) -> str:
        """What a user should know of how it worked, in one line, or ""."""
        return ""

    def remember(self, run: Path, job: str) -> None:
        """Write the number or name of a run's job into its directory, for the next sweep."""
        written = json.dumps({"launcher": self.name, "job": job})
        try:
            write_file(run / LAUNCHED, f"{written}\n".encode())
        except OSError as error:
            raise FslError(
                f"{run}: {error.strerror}. A folder with room that can be written to"
            ) from error

    def remembered(self, run: Path) -> str | None:
        """The job that `remember` wrote for this run under this launcher's name."""
        launcher, job = launched(run)
        return job if launcher == self.name else None


def launched(run: Path) -> tuple[str, str]:
    """Launcher and job of a run, as its directory says; two empty texts if it names none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((run / LAUNCHED).read_bytes())
        return str(found["launcher"]), str(found["job"])
    return "", ""

"""Ctrl-C, SIGTERM and SIGHUP end every command with a word on how to go on.

During a run, the step is finished and kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from fsl_core.runs.stopping import Stop
from fsl_core.text import printable

if TYPE_CHECKING:
    from fsl_core.runs.run import Run

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


AGAIN = "The same command begins again"


@dataclass
class Watched:
    """What is interrupted: run is None until there is one, and where there is none.

    go_on: how to go on without a run.
    """

    stop: Stop
    run: Run | None = None
    go_on: str = AGAIN

    def follow(self, run: Run) -> None:
        self.run, run.stop = run, self.stop

    def told(self) -> str:
        progress = sys.modules.get("fsl_core.reporting.progress")  # absent: nothing was shown
        at = progress.on_stderr().abandon() if progress else ""
        if self.run is not None:
            return _message(self.run)
        return f"interrupted{' at ' if at else ''}{printable(at)}. {self.go_on}"


_current: list[Watched] = []
"""What a signal would interrupt, the innermost last."""


def follow(run: Run) -> None:
    """An interruption ends this run from here on."""
    if _current:
        _current[-1].follow(run)


@contextmanager
def going_on(told: str) -> Iterator[None]:
    """Within this context, that is how to go on after an interruption."""
    watched = _current[-1] if _current else Watched(Stop())
    run, before = watched.run, watched.go_on
    watched.run, watched.go_on = None, told
    yield  # after an exception this stays: the message is yet to come
    watched.run, watched.go_on = run, before


@contextmanager
def interruptible() -> Iterator[Watched]:
    """Within this context the signals end the program with a message and 128 + their number.

    While a run trains, the first one lets it finish its step and write a checkpoint; a second one
    ends it at once, as does the first at any other time.
    """
    watched = Watched(Stop())
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        # Python calls this between two instructions of the main thread, so it does little: it
        # sets a flag, which the outer loop reads after each step.
        received.append(number)
        if watched.stop.requested or not watched.stop.heeded:
            raise KeyboardInterrupt
        watched.stop.requested = True
        if sys.stderr.isatty():  # os.write: the signal may have come during a write to sys.stderr
            os.write(2, b"\nstopping after this step; once more to end at once\n")

    _current.append(watched)
    try:
        with handled(handle):
            yield watched
    except KeyboardInterrupt:
        typer.echo(watched.told(), err=True)
        raise typer.Exit(128 + (received or [signal.SIGINT])[0]) from None
    finally:
        _current.remove(watched)


@contextmanager
def handled(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Within this context, these signals have a handler.

    Python lets the main thread alone set one; in another thread nothing is done. A signal that
    was ignored before, as nohup does it with SIGHUP, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    changed = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    for number in changed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


def _message(run: Run) -> str:
    """Where the run stands, by what is on the disk and not by what memory holds."""
    from fsl_core.runs.files import RESULT

    kept, resume = run.kept_step(), f"`fsl resume {run.directory}`"
    at = f"interrupted at step {run.step} of {run.steps}"
    if (run.folder / RESULT).is_file():
        return (
            f"interrupted after the result was written. `fsl report {run.directory}` writes "
            "the report"
        )
    if kept == run.steps:
        return f"interrupted after training; nothing of it is lost. {resume} evaluates it"
    if run.step == 0:
        return f"interrupted before the first of {run.steps} steps. {resume} begins with it"
    if kept == run.step:
        return f"{at}; nothing is lost. {resume} goes on from step {kept}"
    if kept:
        return f"{at}. {resume} goes on from step {kept}, that of the last checkpoint"
    return f"{at}, before the first checkpoint. {resume} starts from the beginning"

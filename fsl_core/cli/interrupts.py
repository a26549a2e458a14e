"""Ctrl-C, SIGTERM and SIGHUP during a run: the step is finished and kept, and the user is told."""

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

if TYPE_CHECKING:
    from fsl_core.runs.run import Run

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@dataclass
class Watched:
    """What is interrupted: run is None until there is one."""

    stop: Stop
    run: Run | None = None

    def follow(self, run: Run) -> None:
        self.run, run.stop = run, self.stop


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

    try:
        with handled(handle):
            yield watched
    except KeyboardInterrupt:
        typer.echo(_message(watched.run), err=True)
        raise typer.Exit(128 + (received or [signal.SIGINT])[0]) from None


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


def _message(run: Run | None) -> str:
    """Where the run stands, by what is on the disk and not by what memory holds."""
    from fsl_core.runs.files import RESULT

    if run is None:
        return "interrupted before the run began"
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

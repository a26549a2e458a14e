"""`--processes N`: the same command in N processes of this machine, watched until they have ended.

torchrun starts processes as well, here and on other machines. It says a user's mistake with a
traceback of its own, and takes a port; this says it in one line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from fsl_core.cli.interrupts import handled
from fsl_core.engine.environment import STORE, place_among_ranks, threads_of
from fsl_core.errors import RunError
from fsl_core.text import printable

LOST = 75
"""Exit code of a rank that ends because another one has ended; that one is the cause."""

GRACE = 10.0
"""Seconds in which ranks end by themselves once one of them has failed; it has told the others."""

GRACE_AFTER_DEATH = 3.0
"""The same if it was ended by a signal: the others notice at their next message."""

POLLED_EVERY = 0.05


def _start(context: typer.Context, wanted: int | None) -> int | None:
    _, count = place_among_ranks()
    if context.resilient_parsing:
        return wanted
    if count > 1:
        if wanted not in (None, count):
            raise RunError(
                f"--processes {wanted}: this is one of {count} processes that are there already. "
                "Either torchrun or --processes"
            )
    elif wanted is not None and wanted > 1:
        raise typer.Exit(launch(wanted, sys.argv[1:], threads_of(wanted)))
    return wanted


Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="share the tasks of each step among N processes of this machine (default: one for "
        "each worker of a long run)",
        callback=_start,
        is_eager=True,  # before any other argument is looked at: the processes do that
    ),
]


def launch(count: int, arguments: Sequence[str], threads: int) -> int:
    """Run `fsl` with these arguments as `count` ranks; returns the exit code.

    threads: of each rank.
    """
    with tempfile.TemporaryDirectory(prefix="fsl-ranks-") as temporary:
        folder = Path(temporary)
        started = [_Rank(number, count, arguments, folder, threads) for number in range(count)]
        try:
            with _forwarded(started):
                cause = _wait(started)
        finally:
            for rank in started:
                rank.kill()
        first = started[0].code
        if cause is None or first not in (LOST, -signal.SIGKILL):
            return first if first >= 0 else 128 - first
        sys.stderr.write(f"{printable(cause.last_words)}\n")
        return cause.code if cause.code >= 0 else 128 - cause.code


class _Rank:
    """A process. The first one has the terminal; what others write to stderr goes to a file."""

    def __init__(
        self, number: int, count: int, arguments: Sequence[str], folder: Path, threads: int
    ):
        self.number, self.count, self._output = number, count, folder / f"{number}.txt"
        environment = {
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": str(threads),
            STORE: str(folder / "store"),
        }
        if sys.platform == "linux":  # the name of a container's host may have no address
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        command = [sys.executable, "-m", "fsl_core", *arguments]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=None if number == 0 else subprocess.DEVNULL,
                stdout=None if number == 0 else subprocess.DEVNULL,
                stderr=None if number == 0 else output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on
            )

    @property
    def code(self) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        return self._process.wait()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        if not self.ended():
            self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    @property
    def last_words(self) -> str:
        """How it ended, and the last line that it wrote."""
        how = f"exit code {self.code}"
        if self.code < 0:
            how = f"ended by {signal.Signals(-self.code).name}"
        text = self._output.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = f"; its last words: {lines[-1].rstrip('.')}" if lines else ""
        return (
            f"rank {self.number} of {self.count}: {how}{said}. `fsl resume` goes on from the last "
            "checkpoint, with any number of processes"
        )


def _wait(ranks: Sequence[_Rank]) -> _Rank | None:
    """Wait for all; returns the one whose failure ended the run, if one failed.

    The others have a while to end by themselves.
    """
    cause: _Rank | None = None
    deadline = float("inf")
    while not all(rank.ended() for rank in ranks):
        if cause is None and (cause := _failed(ranks)):
            deadline = time.monotonic() + (GRACE if cause.code >= 0 else GRACE_AFTER_DEATH)
        if time.monotonic() > deadline:
            break
        time.sleep(POLLED_EVERY)
    return cause or _failed(ranks)


def _failed(ranks: Sequence[_Rank]) -> _Rank | None:
    return next((rank for rank in ranks if rank.ended() and rank.code not in (0, LOST)), None)


def _forwarded(ranks: Sequence[_Rank]) -> AbstractContextManager[None]:
    """Within this context all ranks get the signals that this process gets."""

    def handle(number: int, _: object) -> None:
        for rank in ranks:
            rank.signal(number)

    return handled(handle)

"""What a job does on the machine that Slurm gives it."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds for a run to save and end, before its limit of time or after it was cancelled."""


class Compute:
    """Runs one command, whose run goes on from its last checkpoint if it is begun again.

    submitit pickles it by its name, so the machine needs this package as well.
    """

    def __init__(self, command: list[str], output: Path):
        self.command, self.output = command, output
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """The exit code of the command. What it prints is appended: a job may be requeued."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  # a job has one thread
            )
            try:
                return _end_of(self._process)
            except BaseException:
                self._stop()
                raise

    def checkpoint(self) -> Any:
        """Called by submitit before the limit of time, and when others need the machine.

        Returns what is to be submitted again.
        """
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(Compute(self.command, self.output))

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait by looking in now and then.

    A wait without a limit holds a lock, and `checkpoint`, which a signal calls in the midst of it,
    could not see the process end.
    """
    while True:
        try:
            return process.wait(3600)
        except subprocess.TimeoutExpired:
            continue


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the job is killed.

    Slurm does it itself; submitit's executor of one machine kills the job a second after it asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)

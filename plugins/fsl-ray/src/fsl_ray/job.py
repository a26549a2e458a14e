"""What an actor does on the machine that Ray gives it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 20.0
"""Seconds for a run to save and end after it was told to."""

LINGER = 5.0
"""Seconds in which a sweep may ask how the run ended, before the actor ends too."""

# looked up before any fork: a process with threads, as Ray's are, may not do it after one
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Job:
    """Runs one command as soon as it exists, also after Ray has made it again elsewhere.

    A sweep may be gone by the time the command ends. So the actor ends itself, which frees what it
    holds of the machine.
    """

    def __init__(self, command: list[str], output: Path, environment: dict[str, str], folder: Path):
        self._started, self._over = threading.Event(), threading.Event()
        self._code, self._reason = 1, ""
        begun = (command, output, {**os.environ, **environment}, folder)
        # Linux tells the command of its parent's end when the thread ends that began it. So that
        # thread stays until the command has ended.
        threading.Thread(target=self._compute, args=begun, daemon=True).start()

    def _compute(
        self, command: list[str], output: Path, environment: dict[str, str], folder: Path
    ) -> None:
        try:
            with output.open("ab") as file:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_end_with_parent,  # noqa: PLW1509  # it calls the kernel alone
                )
            self._started.set()
            self._code = self._process.wait()
        except OSError as error:
            self._reason = (
                f"{error.filename or output}: {error.strerror}. The folder of the sweep, the "
                "working directory and this Python under the same path on all machines"
            )
        finally:
            self._over.set()
            time.sleep(LINGER)
            _end_this_actor()

    def ended(self) -> tuple[int, str]:
        """Wait for the end of the command; its exit code, and what it cannot say itself."""
        self._over.wait()
        return self._code, self._reason

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL later to a command that does not end."""
        if self._started.wait(PATIENCE):
            self._process.terminate()
            threading.Thread(target=self._kill_later, daemon=True).start()

    def _kill_later(self) -> None:
        if not self._over.wait(PATIENCE):
            self._process.kill()


def _end_this_actor() -> None:
    import ray

    ray.kill(ray.get_runtime_context().current_actor)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the actor is killed."""
    if _PRCTL is not None:
        _PRCTL(1, signal.SIGTERM)

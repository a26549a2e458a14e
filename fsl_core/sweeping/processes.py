"""Starts the processes of a sweep: forked from a server if that is safe, else each by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from fsl_core.sweeping.server import PATIENCE


class Process(Protocol):
    """A started run."""

    def poll(self) -> int | None:
        """None while it runs, then its exit code: minus the number of the signal that ended it."""

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""


class Processes:
    """Starts processes of one program, and ends them when it is closed.

    program:     name of a module, as described in `fsl_core.sweeping.server`.
    options:     what its `preload` is given.
    environment: of every process.
    reason:      why they are not forked; empty while they are, and before the first.
    """

    def __init__(
        self, program: str, options: Sequence[str] = (), environment: Mapping[str, str] = os.environ
    ):
        self._program, self._options, self._environment = program, options, dict(environment)
        self._server: _Server | None = None
        self._alone: list[_Alone] = []
        self.reason = "" if sys.platform == "linux" else f"it is not done on {sys.platform}"

    def start(self, arguments: Sequence[str], output: Path) -> Process:
        """Begin a process; what it prints goes to the file `output`."""
        if not self.reason and (self._server is None or self._server.ended):
            self._serve()
        if self._server is not None:
            return self._server.start(arguments, output)
        self._alone.append(_Alone(self._program, arguments, output, self._environment))
        return self._alone[-1]

    def _serve(self) -> None:
        self.close()
        server = _Server(self._program, self._options, self._environment)
        self.reason = server.refusal
        self._server = None if server.refusal else server

    def close(self) -> None:
        """End what still runs; it has a while to end by itself."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for process in self._alone:
            process.end()
        deadline = time.monotonic() + PATIENCE
        for process in self._alone:
            process.wait(deadline - time.monotonic())
        self._alone.clear()


class _Alone:
    """A process of `fsl_core.sweeping.alone`, which ends when its standard input is closed."""

    def __init__(self, program: str, arguments: Sequence[str], output: Path, environment: dict):
        command = [sys.executable, "-m", "fsl_core.sweeping.alone", program, *arguments]
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops the others
            )
        self._input = _opened(self._process.stdin)

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self.end()
        return code

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._input.close()

    def wait(self, seconds: float) -> None:
        _wait_or_kill(self._process, seconds)


class _Server:
    """The other end of `fsl_core.sweeping.server`.

    refusal: why it does not fork.    ended: whether it has ended, and its processes with it.
    """

    def __init__(self, program: str, options: Sequence[str], environment: Mapping[str, str]):
        command = [sys.executable, "-m", "fsl_core.sweeping.server", program, *options]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops the server
        )
        self._orders = _opened(self._process.stdin)
        self._answers = _opened(self._process.stdout)
        self._started, self._received = 0, b""
        self._codes: dict[str, int] = {}
        self.ended = False
        try:
            self.refusal = _refusal(self._answers.readline())
        except BaseException:  # Ctrl-C while it loads: nobody else would close it
            self.close()
            raise
        os.set_blocking(self._answers.fileno(), False)  # the sweep looks in, and does not wait
        if self.refusal:
            self.close()

    def start(self, arguments: Sequence[str], output: Path) -> _Forked:
        self._started += 1
        forked = _Forked(self, str(self._started))
        self._order(start=forked.key, arguments=[*arguments], output=str(output))
        return forked

    def send(self, key: str, number: int) -> None:
        self._order(signal=key, number=number)

    def code(self, key: str) -> int | None:
        self._listen()
        if key in self._codes:
            return self._codes[key]
        return -signal.SIGKILL if self.ended else None  # they were killed with it

    def _order(self, **order: object) -> None:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            self.ended = True

    def _listen(self) -> None:
        while not self.ended:
            try:
                read = os.read(self._answers.fileno(), 65536)
            except BlockingIOError:
                return
            self.ended = not read  # nothing to read, and not blocked: the other end is closed
            *lines, self._received = (self._received + read).split(b"\n")
            for answer in map(json.loads, lines):
                self._codes[answer["ended"]] = answer["code"]

    def close(self) -> None:
        self.ended = True
        with suppress(BrokenPipeError):  # an order that it did not live to read
            self._orders.close()
        # The server ends its processes in PATIENCE seconds, and kills the others.
        _wait_or_kill(self._process, 2 * PATIENCE)
        self._answers.close()


class _Forked:
    def __init__(self, server: _Server, key: str):
        self._server, self.key = server, key

    def poll(self) -> int | None:
        return self._server.code(self.key)

    def send(self, number: int) -> None:
        self._server.send(self.key, number)


def _opened(end: IO[bytes] | None) -> IO[bytes]:
    """This end of a pipe, which is there because it was asked for."""
    assert end is not None
    return end


def _refusal(answer: bytes) -> str:
    """The server's reason not to fork, from the first line that it says; "" if it is ready."""
    if not answer:
        return "the process to fork from has ended while it loaded"
    return json.loads(answer).get("refused", "")


def _wait_or_kill(process: subprocess.Popen, seconds: float) -> None:
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""Keeps a program loaded and forks it: `python -m fsl_core.sweeping.server PROGRAM OPTION...`.

To import torch and the plugins takes seconds, and a small run less than one. So they are imported
once, here, and each run is a process forked from this one: as alone as a process of its own, and
with nothing left over from the run before.

PROGRAM is a module with two functions. `preload(options)` imports what runs need and returns why
this process may not be forked, or nothing. `run(arguments)` is what a forked process does.

Orders are lines of JSON on standard input:   {"start": key, "arguments": [...], "output": file}
Answers are lines of JSON on standard output: {"ready": true} or {"refused": reason}, then
                                              {"ended": key, "code": as subprocess tells it}

When standard input is closed, whoever gave the orders has ended, by whatever signal: what still
runs is ended too.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

PATIENCE = 20.0
"""Seconds that a process has to end in by itself, as to write a checkpoint, before it is killed."""
_PR_SET_PDEATHSIG = 1


def main(program_name: str, options: list[str]) -> None:
    orders, answers = os.dup(0), os.dup(1)
    _point(0, os.devnull, os.O_RDONLY)
    os.dup2(2, 1)  # what a library prints is no answer
    program = import_module(program_name)
    if reason := program.preload(options) or _threads_left():
        _tell(answers, refused=reason)
        return
    gc.collect()
    gc.freeze()  # a collection in a forked process then leaves shared memory shared
    arguments = _Server(orders, answers).serve()
    if arguments is not None:
        _end(_run(program, arguments))


def _run(program: ModuleType, arguments: list[str]) -> int:
    """The exit code of a run, as Python makes it."""
    try:
        program.run(arguments)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End a forked process as Python does, but leave its modules to the system.

    To take them apart touches all the memory that is shared with the server, and so copies it:
    a third of the time of a small run.
    """
    threading._shutdown()
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, or closed: then nothing is left to write
            stream.flush()
    os._exit(code & 0xFF)


class _Server:
    """children: process number to key."""

    def __init__(self, orders: int, answers: int):
        self._orders, self._answers = orders, answers
        self._children: dict[int, str] = {}
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)

    def serve(self) -> list[str] | None:
        """The arguments, in a process that was forked; None here, once all is done."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the line below takes effect
        signal.set_wakeup_fd(self._waker)
        _tell(self._answers, ready=True)
        received = b""
        while True:
            ready, *_ = select.select([self._orders, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._orders in ready:
                read = os.read(self._orders, 65536)
                if not read:
                    return self._end_all()
                *lines, received = (received + read).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if self._fork(order):
                        return order["arguments"]

    def _fork(self, order: dict[str, Any]) -> bool:
        """Whether this is the new process."""
        parent = os.getpid()
        if number := os.fork():
            self._children[number] = order["start"]
            return False
        _die_with(parent)
        os.setsid()  # Ctrl-C in the terminal reaches the sweep alone, which then stops the others
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._orders, self._answers, self._woken, self._waker):
            os.close(descriptor)
        _point(1, order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(1, 2)
        return True

    def _reap(self) -> None:
        while self._children:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            if key := self._children.pop(number, None):
                code = os.waitstatus_to_exitcode(status)
                _tell(self._answers, ended=key, code=code)

    def _end_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self._children:
                os.kill(child, number)
            deadline = time.monotonic() + PATIENCE
            while self._children and (left := deadline - time.monotonic()) > 0:
                select.select([self._woken], [], [], left)
                self._reap()


def _tell(answers: int, **answer: Any) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more; the end of the orders says so too
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _point(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the server has ended, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


def _threads_left() -> str:
    """Why forking is not safe: a forked process has no other thread, and the locks of all of them.

    The libraries of linear algebra end their own threads before a fork, so one is tried.
    """
    if not (number := os.fork()):
        os._exit(0)
    os.waitpid(number, 0)
    threads = len(os.listdir("/proc/self/task"))
    return f"something that was imported has started {threads - 1} threads" if threads > 1 else ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

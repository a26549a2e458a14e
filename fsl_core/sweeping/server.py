"""Keeps a program loaded and forks it: `python -m fsl_core.sweeping.server PROGRAM OPTION...`.

To import torch and the plugins takes seconds, and a small run less than one. So they are imported
once, here, and each run is a process forked from this one: as alone as a process of its own, and
with nothing left over from the run before.

PROGRAM is a module with two functions. `preload(options)` imports what runs need and returns why
this process may not be forked, or nothing. `run(arguments)` is what a forked process does.

Orders are lines of JSON on standard input:   {"start": key, "arguments": [...], "output": file}
                                              {"signal": key, "number": of the signal}
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
"""Seconds for a process to end by itself, with a checkpoint written, before it is killed."""

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent has ended."""


def main(program_name: str, options: list[str]) -> None:
    # Orders and answers move to numbers of their own. What a library reads or prints while it is
    # imported then touches neither.
    orders, answers = os.dup(0), os.dup(1)
    _point(0, os.devnull, os.O_RDONLY)
    os.dup2(2, 1)
    program = import_module(program_name)
    if reason := program.preload(options) or _threads_left():
        _tell(answers, refused=reason)
        return
    gc.collect()
    # Forked processes share this one's memory until somebody writes to it, and a collection
    # writes to every object that it looks at. It does not look at frozen ones.
    gc.freeze()
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
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python's own end
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the disk is full, or the stream is closed
            stream.flush()
    os._exit(code & 0xFF)


class _Server:
    """Reads orders, forks, and tells when a forked process has ended.

    All of it happens in one thread, because a process with threads must not fork.
    """

    def __init__(self, orders: int, answers: int):
        self._orders, self._answers = orders, answers
        self._children: dict[int, str] = {}  # process number to key
        # A child may end between two looks. Python writes a byte to this pipe at each SIGCHLD, so
        # one call of select waits for orders and ends together and misses none.
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)

    def serve(self) -> list[str] | None:
        """The arguments, in a process that was forked; None here, once all is done."""
        # By default SIGCHLD is ignored and wakes nobody. Any handler makes the next line work.
        signal.signal(signal.SIGCHLD, lambda *_: None)
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
                    self._end_all()
                    return None
                *lines, received = (received + read).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if "signal" in order:
                        self._send(order["signal"], order["number"])
                    elif self._fork(order):
                        return order["arguments"]

    def _fork(self, order: dict[str, Any]) -> bool:
        """Whether this is the new process."""
        parent = os.getpid()
        if number := os.fork():
            self._children[number] = order["start"]
            return False
        _die_with(parent)  # first: until then nothing ends this process if the server is killed
        # A process group of its own: Ctrl-C in the terminal reaches the sweep alone, which then
        # stops the others.
        os.setsid()
        # The server's ends of the pipes must close here as well. Otherwise this process would
        # hold them open, and nobody would see the server's end.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._orders, self._answers, self._woken, self._waker):
            os.close(descriptor)
        _point(1, order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(1, 2)
        return True

    def _send(self, key: str, number: int) -> None:
        for child, own in self._children.items():
            if own == key:
                os.kill(child, number)

    def _reap(self) -> None:
        """Tell of every child that has ended: signals of several may have arrived as one."""
        while self._children:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            if key := self._children.pop(number, None):
                code = os.waitstatus_to_exitcode(status)
                _tell(self._answers, ended=key, code=code)

    def _end_all(self) -> None:
        """Ask all children to end, wait, and then kill those that did not."""
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
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _threads_left() -> str:
    """Why forking is not safe, or "".

    A forked process has one thread, and the locks that all threads held at that moment: one of
    them may never open. The libraries of linear algebra end their own threads before a fork, so
    one fork is made before the threads are counted.
    """
    if not (number := os.fork()):
        os._exit(0)
    os.waitpid(number, 0)
    threads = len(os.listdir("/proc/self/task"))
    return f"something that was imported has started {threads - 1} threads" if threads > 1 else ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

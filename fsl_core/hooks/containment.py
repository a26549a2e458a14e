"""What a plugin may not leave behind while it loads: text on the screen, changed global state, a process that has ended."""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from tempfile import TemporaryFile
from typing import Any

from fsl_core.errors import PluginError

SHOWN_CHARACTERS = 200

PutBack = Callable[[], str]
"""Called after a plugin has loaded: restores a state where it has changed, and returns what that was, or an empty text."""


@contextmanager
def contained(notes: list[str]) -> Iterator[None]:
    """Within this context text that is printed is kept, global state is put back at the end, and os._exit is an error.

    notes: gains a sentence for the text and for each state that had changed.
    torch and numpy are looked at where they have been imported already. What cannot be seen from Python stays possible: a signal
    or a crash that ends the process, an endless loop, and changes in the objects of other modules.
    """
    with ExitStack() as stack:
        stack.enter_context(_output_kept(notes))
        stack.enter_context(_exit_refused())
        states = list(_states())
        try:
            yield
        finally:
            changed = [name for put_back in reversed(states) if (name := put_back())]
            notes += [f"changed {name} while it loaded. It was put back" for name in changed]


@contextmanager
def _output_kept(notes: list[str]) -> Iterator[None]:
    """Nothing reaches standard output or error: neither by way of Python's streams nor of the file descriptors below them."""
    names = ("stdout", "stderr")
    before = {name: getattr(sys, name) for name in names}
    taken: list[str] = []
    diverted = {
        name: _Diverted(stream, taken) for name, stream in before.items() if stream is not None
    }
    with TemporaryFile() as file, ExitStack() as descriptors:
        for stream in before.values():
            _flush(stream)
        for number in (1, 2):
            with suppress(OSError):  # closed, as in a service
                kept = os.dup(number)
                os.dup2(file.fileno(), number)
                descriptors.callback(_point_back, kept, number)
        for name, stream in diverted.items():
            setattr(sys, name, stream)
        try:
            yield
        finally:
            for name, stream in diverted.items():
                if getattr(sys, name) is not stream:
                    notes.append(f"changed sys.{name} while it loaded. It was put back")
                _flush(before[name])
                setattr(sys, name, before[name])
                stream.let_through()
            descriptors.close()
            file.seek(0)
            text = " ".join(
                "".join([*taken, file.read().decode("utf-8", errors="replace")]).split()
            )
            if text:
                cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
                notes.append(f"printed while it loaded: {cut}")


class _Diverted:
    """Stands for a standard stream while a plugin loads. A log handler that kept it reaches the real stream later."""

    def __init__(self, stream: Any, taken: list[str]):
        self._stream, self._taken = stream, taken

    def write(self, text: str) -> int:
        if self._taken is None:
            return self._stream.write(text)
        self._taken.append(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def let_through(self) -> None:
        self._taken = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush(stream: Any) -> None:
    with suppress(
        AttributeError, OSError, ValueError
    ):  # absent, broken or closed: then it holds nothing either
        stream.flush()


def _point_back(kept: int, number: int) -> None:
    os.dup2(kept, number)
    os.close(kept)


@contextmanager
def _exit_refused() -> Iterator[None]:
    """os._exit raises in this process; in one forked from it, it ends that one as always."""
    real, process, watched = os._exit, os.getpid(), True

    def refuse(status: int) -> None:
        if watched and os.getpid() == process:
            raise PluginError(
                f"called os._exit({status!r}) while it loaded. A plugin that raises what is wrong"
            )
        real(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit, watched = real, False


def _states() -> Iterator[PutBack]:
    yield _value("the working directory", os.getcwd, os.chdir)
    yield _environment()
    yield _warning_filters()
    yield _value("the random state of random", random.getstate, random.setstate)
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        yield from _signal_handlers()
    if numpy_random := sys.modules.get("numpy.random"):
        yield _value(
            "the random state of numpy",
            numpy_random.get_state,
            numpy_random.set_state,
            _same_numpy_state,
        )
    if torch := sys.modules.get("torch"):
        yield from _torch_states(torch)


def _value(
    name: str,
    read: Callable[[], Any],
    write: Callable[[Any], Any],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> PutBack:
    before = read()

    def put_back() -> str:
        if same(before, read()):
            return ""
        write(before)
        return name

    return put_back


def _environment() -> PutBack:
    before = dict(os.environ)

    def put_back() -> str:
        after = dict(os.environ)
        changed = sorted(
            key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
        )
        for key in changed:
            if key in before:
                os.environ[key] = before[key]
            else:
                del os.environ[key]
        return f"os.environ ({', '.join(changed)})" if changed else ""

    return put_back


def _warning_filters() -> PutBack:
    """Those for one message, one module or a category of its own are kept: libraries add them for warnings they know."""
    scope = warnings.catch_warnings()
    scope.__enter__()
    before = list(warnings.filters)

    def put_back() -> str:
        after = list(warnings.filters)
        narrow = [
            f for f in after if f not in before and (f[1] or f[3] or f[2].__module__ != "builtins")
        ]
        scope.__exit__(None, None, None)
        for action, message, category, module, line in reversed(narrow):
            warnings.filterwarnings(action, _pattern(message), category, _pattern(module), line)
        return "" if after == [*narrow, *before] else "the warning filters"

    return put_back


def _pattern(expression: Any) -> str:
    return getattr(expression, "pattern", expression) or ""


def _signal_handlers() -> Iterator[PutBack]:
    for number in signal.Signals:
        if (
            signal.getsignal(number) is not None
        ):  # None: not set from Python, so Python cannot set it back
            yield _value(
                f"the handler of {number.name}",
                partial(signal.getsignal, number),
                partial(signal.signal, number),
            )


def _same_numpy_state(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and one[2:] == other[2:] and bool((one[1] == other[1]).all())


def _torch_states(torch: Any) -> Iterator[PutBack]:
    def set_default_device(device: Any) -> None:
        torch.set_default_device(
            None
        )  # stated as the default, a device slows every call: only where it had been stated
        if torch.get_default_device() != device:
            torch.set_default_device(device)

    def deterministic() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def set_deterministic(flags: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])

    yield _value("torch's random state", torch.get_rng_state, torch.set_rng_state, torch.equal)
    yield _value("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield _value("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield _value(
        "torch's anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    )
    yield _value("torch's number of threads", torch.get_num_threads, torch.set_num_threads)
    yield _value("torch's deterministic algorithms", deterministic, set_deterministic)
    for flag in ("benchmark", "deterministic", "enabled"):
        cudnn = torch.backends.cudnn
        yield _value(
            f"torch.backends.cudnn.{flag}",
            partial(getattr, cudnn, flag),
            partial(setattr, cudnn, flag),
        )
    yield _value("torch's default device", torch.get_default_device, set_default_device)

"""What a plugin may not leave behind while it loads: text on the screen, changed global state."""

from __future__ import annotations

import operator
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

SHOWN_CHARACTERS = 200


class _State(NamedTuple):
    """A part of the process that a plugin may change by accident, and a run depends on."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    same: Callable[[Any, Any], bool] = operator.eq


_STATES = (
    _State("the random state of random", random.getstate, random.setstate),
    _State("torch's random state", torch.get_rng_state, torch.set_rng_state, torch.equal),
    _State("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
)


@contextmanager
def contained(notes: list[str]) -> Iterator[None]:
    """Within this context printed text is kept, and some global state is put back at the end.

    notes: gains a sentence for the text and for each state that had changed.
    This is against accidents. A plugin can still do what Python can: end the process, write to
    file descriptors, change the environment, the working directory, signal handlers, other
    settings of torch, and the objects of other modules.
    """
    with ExitStack() as stack:
        stack.enter_context(_output_kept(notes))
        stack.enter_context(_filters_put_back(notes))
        for state in _STATES:
            stack.enter_context(_put_back(state, notes))
        yield


@contextmanager
def _put_back(state: _State, notes: list[str]) -> Iterator[None]:
    before = state.read()
    try:
        yield
    finally:
        if not state.same(before, state.read()):
            state.write(before)
            notes.append(_changed(state.name))


@contextmanager
def _filters_put_back(notes: list[str]) -> Iterator[None]:
    """Undo filters for all warnings. Libraries add narrow ones for those they know: these stay."""
    before = after = _filters()
    try:
        with warnings.catch_warnings():
            try:
                yield
            finally:
                after = _filters()
    finally:
        narrow: list[Any] = [e for e in after if e not in before and _is_narrow(*e)]
        for action, message, category, module, line in reversed(narrow):
            warnings.filterwarnings(action, _pattern(message), category, _pattern(module), line)
        if after != [*narrow, *before]:
            notes.append(_changed("the warning filters"))


def _filters() -> list[Any]:
    """Python's own list holds tuples of five, which no name describes."""
    return list(warnings.filters)


def _is_narrow(action: str, message: Any, category: type, module: Any, line: int) -> bool:
    """For one message, one module or a category of a library's own."""
    return bool(message or module or category.__module__ != "builtins")


def _pattern(expression: Any) -> str:
    return getattr(expression, "pattern", expression) or ""


@contextmanager
def _output_kept(notes: list[str]) -> Iterator[None]:
    """Nothing reaches Python's standard output or error."""
    taken: list[str] = []
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    diverted = {
        name: _Diverted(stream, taken) for name, stream in before.items() if stream is not None
    }
    for name, stream in diverted.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in diverted.items():
            if getattr(sys, name) is not stream:
                notes.append(_changed(f"sys.{name}"))
            setattr(sys, name, before[name])
            stream.let_through()
        if text := " ".join("".join(taken).split()):
            cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
            notes.append(f"printed while it loaded: {cut}")


class _Diverted:
    """Stands for a standard stream while a plugin loads.

    A log handler made at that time keeps it, and shall reach the real stream later.
    """

    def __init__(self, stream: Any, taken: list[str]):
        self._stream = stream
        self._taken: list[str] | None = taken

    def write(self, text: str) -> int:
        if self._taken is None:
            return self._stream.write(text)
        self._taken.append(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def let_through(self) -> None:
        self._taken = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _changed(what: str) -> str:
    return f"changed {what} while it loaded. It was put back"

"""Calling the command line in this process, as the fixtures `call` and `in_process` do."""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    """How a call of the command line ended."""

    code: object
    out: str
    err: str


Call = Callable[..., Ended]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Ctrl-C arrives when this function is called."""

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(function, interrupted)

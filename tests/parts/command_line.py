"""Calling the command line in this process, as the fixtures `call` and `in_process` do."""

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    """How a call of the command line ended."""

    code: object
    out: str
    err: str


Call = Callable[..., Ended]

"""Asking a run to stop at a point at which nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fsl_core.errors import Interrupted


@dataclass
class Stop:
    """Set by a signal handler, or by any thread; training looks at it between two steps.

    heeded: whether training is on its way to the next look.
    """

    requested: bool = False
    heeded: bool = False

    def check(self) -> None:
        """Raise Interrupted if somebody wants the run to stop."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Within this context a request is seen soon, and at its end at the latest."""
        self.heeded = True
        try:
            yield
        finally:
            self.heeded = False
        self.check()

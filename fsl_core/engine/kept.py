"""Measured choices, kept so that this machine computes the same recipe in the same way again."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from typing import Any

from filelock import FileLock

from fsl_core.engine.choice import Choice
from fsl_core.errors import RunError
from fsl_core.files.private import cache_dir
from fsl_core.files.writing import write_file

PATIENCE = 10.0
"""Seconds to wait for another process that writes its choice, which takes milliseconds."""


@dataclass(frozen=True)
class Kept:
    """A choice that was measured before.

    measured_on: the day, as 2026-11-25.
    """

    choice: Choice
    measured_on: str


class ChoiceFile:
    """The file of one choice in the cache, `execution/<digest>.json`. The first to write it wins.

    settled_for: all that decides speed, as plain data: machine, versions, and parts of a recipe.
    """

    def __init__(self, settled_for: dict[str, Any]):
        text = json.dumps(settled_for, sort_keys=True, default=str)
        self.settled_for = json.loads(text)
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.path = cache_dir() / "execution" / f"{digest}.json"

    def read(self) -> Kept | None:
        """What was kept, or None if the file is absent or damaged."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["settled_for"] != self.settled_for:
                return None
            return Kept(Choice.from_dict(data), str(date.fromisoformat(data["measured_on"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, RunError):
            return None

    def check_writable(self) -> None:
        """Raise OSError if nothing could be kept."""
        with self._writing():
            pass

    def keep(self, choice: Choice, replace: bool = False) -> Kept:
        """Write a choice, and return what is kept now: the choice that was written first.

        replace: write this choice even if there is one.
        Raises OSError if it cannot be written.
        """
        with self._writing():
            kept = None if replace else self.read()
            if kept is None:
                kept = Kept(choice, str(date.today()))
                self._write(kept)
            return kept

    def _writing(self) -> AbstractContextManager[Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.parent / ".lock", timeout=PATIENCE)

    def _write(self, kept: Kept) -> None:
        data = {
            **kept.choice.as_dict(),
            "measured_on": kept.measured_on,
            "settled_for": self.settled_for,
        }
        write_file(self.path, json.dumps(data, indent=2, allow_nan=False).encode())

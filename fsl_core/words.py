"""Wording shared by error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(name: str, known: Iterable[str], label: str = "Known") -> str:
    """The end of an error message: the nearest known name, or all of them where none is near."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"{label}: {', '.join(known)}" if known else f"{label}: none"

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


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line of at most that many characters and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return (text if len(text) <= most else text[: most - 3] + "...").rstrip(".")

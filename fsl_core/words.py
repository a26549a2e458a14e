"""Wording shared by error messages, and names from elsewhere shown so that they do no harm."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

JOINERS = "\u200c\u200d"  # letters of several scripts need them, and nothing else hides in them


def suggest(name: str, known: Iterable[str], label: str = "Known") -> str:
    """The end of an error message: the nearest known name, or all of them where none is near."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"{label}: {', '.join(known)}" if known else f"{label}: none"


def printable(text: str, lines: bool = False) -> str:
    """The text with everything that a terminal or a page obeys or hides written out instead.

    That is control characters, marks that turn the direction of writing, and bytes of a file name
    that are not UTF-8. Letters of every script stay.

    lines: line breaks and tabs stay too.

    >>> print(printable("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return "".join(c if _shown(c, lines) else _written_out(c) for c in text)


def _shown(character: str, lines: bool) -> bool:
    return (
        character.isprintable()
        or unicodedata.category(character) == "Zs"
        or character in JOINERS
        or (lines and character in "\n\t")
    )


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()

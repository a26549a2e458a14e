"""Wording shared by error messages, and names from elsewhere shown so that they do no harm."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST_NAME = 120
"""Bytes. File systems take 255 and some less; a folder's name has more than the recipe's."""
JOINERS = "\u200c\u200d"  # letters of several scripts need them, and nothing else hides in them


def suggest(name: str, known: Iterable[str], label: str = "Known") -> str:
    """The end of an error message: the nearest known name, or all of them if none is near."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"{label}: {', '.join(known)}" if known else f"{label}: none"


def printable(text: object, lines: bool = False) -> str:
    """The text with everything that a terminal or a page obeys or hides written out instead.

    That is control characters, marks that turn the direction of writing, and bytes of a file name
    that are not UTF-8. Letters of every script stay.

    text:  a text, a path, or anything else that is shown as its `str`.
    lines: line breaks and tabs stay too.

    >>> print(printable("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return "".join(c if _shown(c, lines) else _written_out(c) for c in str(text))


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


def name_of(file: Path) -> str:
    """The name of a recipe's file, in a form that every folder takes as a name.

    It has no ending, is on one line, and short; two long names do not become the same.

    >>> name_of(Path("recipes/5w1s-maml.yaml")), name_of(Path("..yaml")), name_of(Path("a\\tb.yml"))
    ('5w1s-maml', 'recipe', 'a_b')
    """
    name = re.sub(r"\.ya?ml$", "", file.name, flags=re.IGNORECASE)
    name = "".join(c if c.isprintable() and c not in '/\\\\:"' else "_" for c in name)
    if not name.strip(" .-"):
        return "recipe"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line of at most that many characters and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return (text if len(text) <= most else text[: most - 3] + "...").rstrip(".")


def in_words(number: int | tuple[int, int]) -> str:
    """A number, or a range as `1..9`."""
    return str(number) if isinstance(number, int) else f"{number[0]}..{number[1]}"

"""Wording shared by error messages, and names from elsewhere shown so that they do no harm."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

LONGEST_NAME = 120
"""Bytes. File systems take 255 and some less; a folder's name has more than the recipe's."""
JOINERS = "\u200c\u200d"  # letters of several scripts need them, and nothing else hides in them
FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001  a spreadsheet computes a cell that begins so
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NO_SUPER = (
    "its constructor does not call that of torch.nn.Module. super().__init__() in its first line"
)
STRICT = "FSL_STRICT_PLUGINS=1 shows the traceback"


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


def name_of(file: Path) -> str:
    """What a recipe's file is called, in a form that every folder takes as a name.

    Without its ending, on one line, and short; two long names do not become one.

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


class CsvWriter:
    """Writes rows of a CSV file that a spreadsheet opens without computing any cell.

    A text that begins like a formula is preceded by an apostrophe, and control characters are
    written out. Numbers stay numbers.

    raw: every text as it is, for programs that look for the very names.
    """

    def __init__(self, file: TextIO, raw: bool = False):
        self._writer, self._raw = csv.writer(file, lineterminator="\n"), raw

    def writerow(self, cells: Iterable[Any]) -> None:
        self._writer.writerow(cells if self._raw else map(_harmless, cells))

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        for row in rows:
            self.writerow(row)


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    formula = text.startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def forgot_super(error: BaseException) -> bool:
    """What torch and Python say where a constructor goes on without that of torch.nn.Module."""
    said = r"before Module\.__init__\(\) call|has no attribute '_(modules|parameters|buffers)'"
    return isinstance(error, AttributeError) and re.search(said, str(error)) is not None


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line of at most that many characters and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return (text if len(text) <= most else text[: most - 3] + "...").rstrip(".")


def raised(error: BaseException, home: str) -> str:
    """`ValueError: what it says (net.py:12)`, with the last place in the code of a plugin.

    home: the module of the plugin's class. Without a place in its file or package, the last one
    that is not torch's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if belongs(f.filename, home)]
    others = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename]
    last = (own or others or frames)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"
    text = first_line(error)
    said = "" if text == type(error).__name__ else f": {printable(text)}"
    return f"{type(error).__name__}{said} ({printable(place)})"


def belongs(file: str, home: str) -> bool:
    """Whether a file is a plugin's: the module itself, or a module of its package other than core."""
    module = sys.modules.get(home)
    if file == getattr(module, "__file__", None):
        return True
    package = sys.modules.get(home.partition(".")[0])
    if package is None or package.__name__ == "fsl_core" or not hasattr(package, "__path__"):
        return False
    return any(file.startswith(folder + os.sep) for folder in package.__path__)

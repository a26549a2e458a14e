"""Wording shared by error messages, and names from elsewhere shown so that they do no harm."""

from __future__ import annotations

import os
import re
import sys
import traceback
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


NO_SUPER = (
    "its constructor does not call that of torch.nn.Module. super().__init__() in its first line"
)
STRICT = "FSL_STRICT_PLUGINS=1 shows the traceback"


def forgot_super(error: BaseException) -> bool:
    """What torch and Python say where a constructor goes on without that of torch.nn.Module."""
    said = r"before Module\.__init__\(\) call|has no attribute '_(modules|parameters|buffers)'"
    return isinstance(error, AttributeError) and re.search(said, str(error)) is not None


def first_line(error: BaseException) -> str:
    """What an error says, in one line without its full stop; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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

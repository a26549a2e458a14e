"""Whose mistake an exception is, in one line with its place."""

from __future__ import annotations

import os
import re
import sys
import traceback

from fsl_core.text import first_line, printable

NO_SUPER = (
    "its constructor does not call that of torch.nn.Module. super().__init__() in its first line"
)
STRICT = "FSL_STRICT_PLUGINS=1 shows the traceback"


def forgot_super(error: BaseException) -> bool:
    """Whether an error comes from a constructor that goes on without that of torch.nn.Module."""
    said = r"before Module\.__init__\(\) call|has no attribute '_(modules|parameters|buffers)'"
    return isinstance(error, AttributeError) and re.search(said, str(error)) is not None


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
    """Whether a file is a plugin's: the module itself, or one of its package other than core."""
    module = sys.modules.get(home)
    if file == getattr(module, "__file__", None):
        return True
    package = sys.modules.get(home.partition(".")[0])
    if package is None or package.__name__ == "fsl_core" or not hasattr(package, "__path__"):
        return False
    return any(file.startswith(folder + os.sep) for folder in package.__path__)

"""Files opened without being kept waiting."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from fsl_core.errors import DataError


def open_regular(file: Path) -> BufferedReader:
    """Open a file for reading.

    Raises DataError if it is a folder, a pipe or a device, or this user may not read it.
    """
    fits = "A file that this user may read"
    # Without O_NONBLOCK the call waits for a writer if the name is that of a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}. {fits}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise DataError(f"{file}: {found}. {fits}")
    return os.fdopen(descriptor, "rb")

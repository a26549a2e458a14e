"""Files opened without being kept waiting, and replaced as a whole."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fsl_core.errors import DataError


def open_regular(file: Path) -> BinaryIO:
    """Open a file for reading. Raises DataError where it is a folder, pipe or device, or may not be
    read.
    """
    fits = "A file that this user may read"
    # Without O_NONBLOCK the call waits for a writer where the name is that of a pipe.
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


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which then takes its place: the whole file, or nothing.

    The file's mode follows the umask. Where anything is raised, nothing is left behind.
    """
    # In a folder of our own beside the target: nobody can put a link there under the name that we
    # write to, and it is on the same file system, so the move is atomic.
    with tempfile.TemporaryDirectory(
        prefix=".new-", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        new = Path(folder) / target.name
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)
        yield new
        os.chmod(new, mode)  # a library may have put a file of another mode in its place
        with new.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name with nothing behind it
        os.replace(new, target)

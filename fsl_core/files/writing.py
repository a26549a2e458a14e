"""Files written all or nothing: never through a symlink that somebody left, never half."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

UNFINISHED = ".partial-"
"""How the names of folders begin that hold a file until it is whole."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within this context, a file to write; at its end that file takes the place of `path`.

    The file lies in a new folder beside `path`, which nobody else can enter: a name that could be
    guessed could be a symlink by the time that it is opened, and a library that is given a name
    (safetensors, torch) follows it. If the context raises, `path` stays as it was. A symlink at
    `path` is replaced, not followed. The new file's permissions are those that the umask gives.
    """
    _refuse_device(path)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    try:
        new = folder / "file"
        with new.open("xb") as empty:
            mode = stat.S_IMODE(os.fstat(empty.fileno()).st_mode)
        yield new
        new.chmod(mode)  # safetensors lets only the owner read what it writes
        # The bytes reach the disk before the name does: after a power cut the file is the old one
        # or the new one, never an empty one.
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write path, all of it or nothing, also when the process is killed."""
    with replacing(path) as new:
        new.write_bytes(content)


def append_file(path: Path, content: bytes) -> None:
    """Append to path; if there is not room for all of it, append nothing."""
    descriptor = _open(path, os.O_APPEND)
    try:
        before = os.fstat(descriptor).st_size
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, before)  # a second try must not follow a line cut short
            raise
    finally:
        os.close(descriptor)


def open_to_fill(path: Path) -> IO[bytes]:
    """An empty file to be filled while others read it, such as the output of a process."""
    return open(_open(path, os.O_TRUNC), "wb")


def _open(path: Path, how: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | how, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "a symlink, which is not followed", str(path)) from error
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder of ours."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
    for left in folder.glob("*.partial"):  # as earlier versions named them
        with suppress(OSError):
            left.unlink()


def _refuse_device(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there yet, or what stands in the way is told when it is written
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a device or a pipe, not a file", str(path))

"""Folders that nobody else can write to. Free of torch, which may read such paths when it loads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from fsl_core.errors import CacheError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_dir() -> Path:
    """The folder named by the environment variable FSL_CACHE, or the user's for fsl-core."""
    return Path(os.environ.get("FSL_CACHE") or platformdirs.user_cache_dir("fsl-core")).expanduser()


def private_folder(path: Path) -> Path:
    """The folder at `path`, made with mode 0700 if it is absent.

    It is for files that are trusted when they are read again, such as compiled code.
    Raises CacheError if another user owns the folder or can put files into it.
    Raises OSError if it cannot be made: only the caller knows whether the cache is needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid"):  # on POSIX; elsewhere a mode does not say who may write
        _refuse_unsafe(path)
    return path


def _refuse_unsafe(path: Path) -> None:
    found = path.lstat()  # of a link itself: it may lead to a folder that another user fills
    if stat.S_ISLNK(found.st_mode):
        raise _unsafe(path, "a link")
    if found.st_uid != os.geteuid():
        raise _unsafe(path, f"belongs to user {found.st_uid}, and you are user {os.geteuid()}")
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise _unsafe(path, f"other users can write to it (mode {stat.S_IMODE(found.st_mode):04o})")
    for folder in (path.parent.resolve() / path.name).parents:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # sticky: only owners rename
            raise _unsafe(path, f"any user can replace it: {folder} is open to all")


def _unsafe(path: Path, reason: str) -> CacheError:
    return CacheError(
        f"{path}: {reason}. A folder that you alone can write to: delete this one, "
        "or name another cache folder in FSL_CACHE"
    )

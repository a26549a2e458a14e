"""Keeping freed memory in the process, and knowing a lack of it."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MEBIBYTE = 1 << 20
_SAID = ("not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
"""How torch's allocators say it on a CPU, in a RuntimeError like any other."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python or of torch on any device, is a lack of memory."""
    import torch  # not above: commands that need no torch import this module

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _SAID)


def keep_freed_memory() -> bool:
    """Tell the C library to reuse large blocks instead of returning them to the system.

    Otherwise the system maps every activation above a few megabytes again, and fills its pages with
    zeros on first use: a quarter of the time of a MAML step on Conv4. For processes of our own,
    such as `fsl run`; glibc only.
    Returns whether the library took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = {
        _M_MMAP_THRESHOLD: 1024 * _MEBIBYTE,
        _M_TRIM_THRESHOLD: 2047 * _MEBIBYTE,
        _M_TOP_PAD: 64 * _MEBIBYTE,
    }
    accepted = [mallopt(key, value) for key, value in settings.items()]
    return all(accepted)

"""Arrays that stay in their file, for sets larger than memory."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsl_core.files.reading import open_regular

HELD = 1 << 26
"""Bytes read by a program until its pages are given back; the system still caches the file."""


class MappedArray:
    """An array in a file, read as far as it is asked for; the file must not change meanwhile.

    tensor: the whole of it, (rows, *item_shape), read-only.
    """

    def __init__(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> None:
        """offset: of the first number, in bytes.    Numbers are little-endian, rows in order."""
        with open_regular(path) as file:
            # Shared and read-only: a private map of more than the memory may be refused.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._advise("MADV_RANDOM")
        with warnings.catch_warnings(action="ignore"):  # torch's, of what cannot be written to
            flat = torch.frombuffer(
                self._map, dtype=dtype, count=int(np.prod(shape)), offset=offset
            )
        self.tensor: Tensor = flat.view(shape)
        self._read = 0

    def reads(self, size: int) -> None:
        """Told how many bytes are about to be read, so that memory is given back in time."""
        self._read += size
        if self._read > HELD:
            self.give_back()

    def give_back(self) -> None:
        """Let go of the memory of all that was read; it is read again when it is asked for."""
        self._read = 0
        self._advise("MADV_DONTNEED")

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Within this context the array is read from its beginning to its end."""
        self._advise("MADV_SEQUENTIAL")
        try:
            yield
        finally:
            self.give_back()
            self._advise("MADV_RANDOM")

    def _advise(self, how: str) -> None:
        if hasattr(mmap, how):  # not on Windows
            self._map.madvise(getattr(mmap, how))

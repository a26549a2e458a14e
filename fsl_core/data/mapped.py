"""Arrays that stay in their file, for sets larger than memory."""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
import weakref
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsl_core.errors import DataError
from fsl_core.files.private import cache_dir
from fsl_core.files.reading import open_regular
from fsl_core.text import printable

LARGE = 1 << 28
"""Bytes from which on numbers that are made only once are kept in a file."""


def scratch(shape: tuple[int, ...]) -> Tensor:
    """An empty uint8 tensor. A large one lies in a file without a name, not in memory.

    The system then writes out what does not fit, and reads it again. The file goes with the tensor.
    A disk without room for it changes nothing: the tensor is in memory.
    """
    if prod(shape) >= LARGE and hasattr(os, "posix_fallocate"):
        try:
            cache_dir().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_dir()) as file:
                # Room for all of it now: to write to a map without room ends the process.
                os.posix_fallocate(file.fileno(), 0, prod(shape))
                mapped = mmap.mmap(file.fileno(), prod(shape))
            return torch.frombuffer(mapped, dtype=torch.uint8).view(shape)
        except OSError:
            pass
    return torch.empty(shape, dtype=torch.uint8)


class MappedArray:
    """An array in a file, of which only the rows that are asked for are read.

    tensor: the whole of it, (rows, *item_shape), read-only. It is mapped, and nothing of it is read
        before somebody looks at its numbers. `take` and `part` do not look: what is read through
        the map counts as memory of this process, by up to 2 MiB for each item.
    """

    def __init__(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> None:
        """offset: of the first number, in bytes.    Numbers are little-endian, rows in order.

        Raises ValueError if the file is too short.
        """
        self._path, self._offset = path, offset
        with open_regular(path) as file:
            self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            # Shared and read-only: a private map of more than the memory may be refused.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings(action="ignore"):  # torch's, of what cannot be written to
            flat = torch.frombuffer(mapped, dtype=dtype, count=prod(shape), offset=offset)
        self.tensor: Tensor = flat.view(shape)
        self._row = prod(shape[1:]) * dtype.itemsize

    def take(self, rows: np.ndarray) -> Tensor:
        """The items of these rows, a copy in memory. DataError if the file is shorter by now."""
        if not hasattr(os, "preadv"):  # on Windows
            return self.tensor[torch.from_numpy(rows)]
        items, buffer = self._empty(len(rows))
        for place, row in enumerate(rows.tolist()):
            self._fill(buffer[place * self._row : (place + 1) * self._row], row)
        return items

    def part(self, start: int, stop: int) -> Tensor:
        """The items from row `start` to before `stop`, as `take`."""
        if not hasattr(os, "preadv"):
            return self.tensor[start:stop].clone()
        items, buffer = self._empty(min(stop, len(self.tensor)) - start)
        self._fill(buffer, start)
        return items

    def _empty(self, n: int) -> tuple[Tensor, memoryview]:
        items = torch.empty(n, *self.tensor.shape[1:], dtype=self.tensor.dtype)
        return items, items.flatten().view(torch.uint8).numpy().data

    def _fill(self, buffer: memoryview, row: int) -> None:
        if os.preadv(self._file, [buffer], self._offset + row * self._row) != len(buffer):
            fit = "A file that does not change during a run"
            raise DataError(f"{printable(self._path)}: row {row} cannot be read any more. {fit}")

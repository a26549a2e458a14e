"""Items that a program or a file gives, looked at before anything is drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fsl_core.data.mapped import MappedArray
from fsl_core.errors import DataError, ShapeError
from fsl_core.text import printable

Items = np.ndarray | Tensor | Sequence[np.ndarray | Tensor]
"""(count, *item_shape): an array, a tensor, or a list of items."""


def class_items(name: str, found: Items, like: Tensor | None = None) -> Tensor:
    """(count, *item_shape) of one class.

    like: items of another class, whose shape and type these have to have.
    Raises ShapeError or DataError, which names class and item.
    """
    where = f"LabelledPool: class {printable(name)!r}"
    items = _tensor(where, found)
    if like is not None and (items.shape[1:], items.dtype) != (like.shape[1:], like.dtype):
        kinds = [f"{tuple(t.shape[1:])} {t.dtype}" for t in (items, like)]
        raise ShapeError(f"{where}: items of {kinds[0]}. {kinds[1]}, as in the classes before it")
    bad = first_unfinished(items)
    if bad is not None:
        raise DataError(f"{where}, item {bad}: not a finite number. Finite numbers")
    return items


def _tensor(where: str, found: Items) -> Tensor:
    if isinstance(found, Tensor):
        return found
    if isinstance(found, np.ndarray):
        return torch.as_tensor(native(where, found))
    rows = [torch.as_tensor(row) for row in found]
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            shapes = f"shape {tuple(row.shape)}, and item 0 of {tuple(rows[0].shape)}"
            raise ShapeError(f"{where}, item {i}: {shapes}. One shape, such as padded to the same")
    if not rows:
        raise ShapeError(f"{where}: an empty list. An array (0, *item_shape)")
    return torch.stack(rows)


def native(where: str, array: np.ndarray) -> np.ndarray:
    """The array in this machine's order of bytes and a type that torch takes.

    Raises ShapeError, which begins with `where`, if there is none.
    """
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ShapeError(f"{where}: items of type {array.dtype}. Whole numbers or floats")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


CHUNK = 1 << 24
"""Bytes that are looked at together, of an array that may be larger than memory."""


def chunks(items: Tensor, mapped: MappedArray | None = None) -> Iterator[tuple[int, Tensor]]:
    """Parts of an array in its order, each with the row that it begins at.

    mapped: the file that the array lies in, if it is not in memory.
    """
    rows = max(1, CHUNK // max(1, items[:1].nbytes))
    for start in range(0, len(items), rows):
        stop = start + rows
        yield start, mapped.part(start, stop) if mapped else items[start:stop]


def first_unfinished(items: Tensor) -> int | None:
    """The first item that holds a number that is not finite."""
    if not items.is_floating_point() or not items.numel():
        return None
    # A sum is finite if all are, and quick; few sums of finite numbers are not.
    if items.sum(dtype=torch.float64).isfinite():
        return None
    bad = ~items.flatten(1).isfinite().all(1) if items.ndim > 1 else ~items.isfinite()
    return int(bad.nonzero()[0]) if bad.any() else None

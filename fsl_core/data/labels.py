"""Labels and splits of items, as arrays that somebody has written; a fault names its row."""

from __future__ import annotations

import numpy as np

from fsl_core.data.sharing import split_of
from fsl_core.data.source import SPLITS
from fsl_core.errors import DataError, ShapeError
from fsl_core.text import printable


def labels_of(
    where: str, y: np.ndarray, n: int, names: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) int64 rows of the class names, and the names in the order of the numbers or alphabet.

    y:     (n,) class numbers 0, 1, … or texts.    names: of the class numbers, if they have any.
    Raises ShapeError or DataError, which begins with `where` and names the row.
    """
    _require_length(where, y, n)
    if y.dtype.kind in "iu":
        _refuse_first(where, y, y < 0, "Class numbers from 0")
        if names:
            fit = f"Numbers 0 .. {len(names) - 1}, as there are {len(names)} names of classes"
            _refuse_first(where, y, y >= len(names), fit)
    elif y.dtype.kind not in "US":
        raise ShapeError(f"{where}: of type {y.dtype}. Whole numbers, or texts")
    found, labels = np.unique(y, return_inverse=True)
    classes = tuple(names[i] if names else text_of(i) for i in found)
    if len(set(classes)) != len(classes):
        raise DataError(f"{where}: two class numbers have one name. Every name once")
    return labels.astype(np.int64), classes


def splits_of(where: str, split: np.ndarray, n: int) -> np.ndarray:
    """(n,) int64 rows of SPLITS.

    split: (n,) 0, 1, 2 for train, validation, test; or their names, also others such as `val`.
    Raises ShapeError or DataError, which begins with `where` and names the row.
    """
    _require_length(where, split, n)
    fit = "train, validation or test, or 0, 1 or 2 for these"
    if split.dtype.kind in "iu":
        _refuse_first(where, split, (split < 0) | (split >= len(SPLITS)), fit)
        return split.astype(np.int64)
    if split.dtype.kind not in "US":
        raise ShapeError(f"{where}: of type {split.dtype}. {fit}")
    found, inverse = np.unique(split, return_inverse=True)
    known = [split_of(text_of(name)) for name in found]
    rows = np.array([SPLITS.index(name) if name else -1 for name in known])[inverse]
    _refuse_first(where, split, rows < 0, fit)
    return rows


def text_of(value: object) -> str:
    """A label as a text."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _require_length(where: str, values: np.ndarray, n: int) -> None:
    if values.shape != (n,):
        raise ShapeError(f"{where}: shape {values.shape}. Expected ({n},), one for each row of x")


def _refuse_first(where: str, values: np.ndarray, bad: np.ndarray, fit: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{where}, row {row}: {printable(text_of(values[row]))}. {fit}")

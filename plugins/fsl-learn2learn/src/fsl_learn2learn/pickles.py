"""Pickles of data sets, checked before learn2learn reads them: arrays and plain data, no code."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsl_core as fsl

SUFFIXES = (".pkl", ".pickle")
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),  # the same in NumPy 2
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("builtins", "bytearray"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # how Python 3 writes bytes for Python 2
}
"""What a pickle may name.

That is all that the published files need, and nothing that runs what it is given.
"""


def refuse_code(files: Iterable[Path], where: str) -> None:
    """Raise DataError if a pickle among the files names more than arrays and plain data.

    A damaged one passes: learn2learn then says what is wrong with it.
    """
    for path in files:
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                _Arrays(file, encoding="latin1").load()
        except _CodeNamedError as error:
            raise fsl.DataError(
                f"{where}: {path}: a pickle that names {error}, so that reading it would run code. "
                "The file as published"
            ) from error
        except Exception:  # what is not a pickle may raise anything
            continue


class _CodeNamedError(Exception):
    pass


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _CodeNamedError(f"{module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: object) -> Any:
        raise _CodeNamedError("a persistent object")

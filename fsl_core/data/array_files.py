"""Arrays in files: .npz, .npy and .safetensors, known by their heads and read when needed.

Nothing in such a file is run: arrays of Python objects, which NumPy would unpickle, are refused.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fsl_core.data.checked import native
from fsl_core.data.mapped import MappedArray
from fsl_core.errors import DataError, FslError
from fsl_core.files.reading import open_regular
from fsl_core.text import printable

ENDINGS = (".npz", ".npy", ".safetensors")

TORCH = {"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32}
TORCH |= {"I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16}
TORCH |= {"F32": torch.float32, "F64": torch.float64}
"""Types of safetensors that items may have."""


@dataclass(frozen=True)
class StoredArray:
    """One array of a file.

    where:  the file and the array's name, for messages.
    shape:  of the whole array.
    dtype:  NumPy's, or torch's if the file is safetensors.
    offset: of its first number in the file; None if it cannot be mapped: compressed, in another
        order of bytes or of axes, or of a type that is converted.
    """

    path: Path
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | torch.dtype
    offset: int | None
    _read: Callable[[], np.ndarray | Tensor]

    @property
    def nbytes(self) -> int:
        """Of the whole array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def kept_as(self) -> torch.dtype:
        """The type in memory; ShapeError if it holds no numbers."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return torch.from_numpy(native(self.where, np.empty(0, self.dtype))).dtype

    def numpy(self) -> np.ndarray:
        """The array in memory, as it was written; DataError if the file is damaged."""
        found = self._checked()
        return found.numpy() if isinstance(found, Tensor) else found

    def tensor(self) -> Tensor:
        """The array in memory; ShapeError if it holds no numbers."""
        found = self._checked()
        return found if isinstance(found, Tensor) else torch.from_numpy(native(self.where, found))

    def mapped(self) -> MappedArray:
        """The array in its file. DataError if it cannot be mapped."""
        if self.offset is None:
            size = f"{self.nbytes / 2**30:.1f} GiB"
            raise DataError(
                f"{self.where}: {size}, and cannot stay in its file: it is compressed, or of "
                "another order or type. A file of np.save, np.savez (not np.savez_compressed) or "
                "safetensors, or a larger map_above"
            )
        with _damage_named(self.path):
            return MappedArray(self.path, self.kept_as, self.shape, self.offset)

    def _checked(self) -> np.ndarray | Tensor:
        with _damage_named(self.path):
            return self._read()


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by their names; that of a .npy file has the name "".

    Raises DataError, which names the file, if it cannot be read or is of another kind.
    """
    with open_regular(path):
        pass  # so that what the system refuses is said in the same words for every kind of file
    readers = dict(zip(ENDINGS, (_npz, _npy, _safetensors), strict=True))
    if path.suffix not in readers:
        raise DataError(f"{printable(path)}: not one of {', '.join(ENDINGS)} by its ending")
    with _damage_named(path):
        return readers[path.suffix](path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FslError:
        raise
    except (OSError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        kind = path.suffix.removeprefix(".")
        fit = f"A whole {kind} file of numbers or texts"
        raise DataError(f"{printable(path)}: cannot be read ({told}). {fit}") from error


def _npy(path: Path) -> dict[str, StoredArray]:
    with open_regular(path) as file:
        head = _npy_head(file, str(printable(path)))
        start = file.tell()
    return {"": _of_numpy(path, str(printable(path)), head, start, lambda: _load(path))}


def _npz(path: Path) -> dict[str, StoredArray]:
    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with _load(path) as archive:
                return archive[name]

        return read

    found = {}
    with zipfile.ZipFile(path) as archive, open_regular(path) as raw:
        for info in archive.infolist():
            name, ending, _ = info.filename.partition(".npy")
            if not ending:
                continue
            where = f"{printable(path)}: {printable(name)}"
            with archive.open(info) as member:
                head, start = _npy_head(member, where), member.tell()
            stored = info.compress_type == zipfile.ZIP_STORED
            offset = _start(raw, info) + start if stored else None
            found[name] = _of_numpy(path, where, head, offset, reader(name))
    return found


def _start(raw: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member that is not compressed begin, after its own head."""
    raw.seek(info.header_offset)
    name, extra = struct.unpack("<26x2H", raw.read(30))
    return info.header_offset + 30 + int(name) + int(extra)


Head = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether columns come first, type."""


def _npy_head(file: IO[bytes], where: str) -> Head:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    head: Head = read(file)
    if head[2].hasobject:
        raise DataError(
            f"{where}: Python objects, such as rows of different lengths. One array of numbers: "
            "rows of one shape, padded if need be"
        )
    return head


def _of_numpy(
    path: Path, where: str, head: Head, offset: int | None, read: Callable[[], np.ndarray]
) -> StoredArray:
    shape, columns_first, dtype = head
    kept = dtype.isnative and dtype.kind in "uif" and not (dtype.kind == "u" and dtype.itemsize > 1)
    plain = kept and (len(shape) < 2 or not columns_first)
    return StoredArray(path, where, shape, dtype, offset if plain else None, read)


def _load(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _safetensors(path: Path) -> dict[str, StoredArray]:
    with open_regular(path) as file:  # its library checks the head, and does not tell the offsets
        length = int.from_bytes(file.read(8), "little")
        with safe_open(path, "pt") as checked:
            names = list(checked.keys())
        heads = json.loads(file.read(length))

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)

        return read

    found = {}
    for name in names:
        head, where = heads[name], f"{printable(path)}: {printable(name)}"
        if head["dtype"] not in TORCH:
            raise DataError(f"{where}: of type {head['dtype']}. One of {', '.join(TORCH)}")
        dtype, offset = TORCH[head["dtype"]], 8 + length + head["data_offsets"][0]
        found[name] = StoredArray(path, where, tuple(head["shape"]), dtype, offset, reader(name))
    return found

"""Where data lies on this machine, and decoded images kept so that they are decoded once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsl_core.data.folders import name_bytes, shown
from fsl_core.errors import DataError
from fsl_core.private import cache_dir


def data_root(root: Path | str | None = None) -> Path:
    """Where data sets are: the option `root`, else the environment variable FSL_DATA, else <cache>/datasets.

    Raises DataError if the folder that was named does not exist.
    """
    named = root or os.environ.get("FSL_DATA")
    if not named:
        return cache_dir() / "datasets"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "option root" if root else "environment variable FSL_DATA"
        raise DataError(
            f"{folder}: named by {source}, but no such folder. An existing folder: `-s episodes.root=DIR` or FSL_DATA"
        )
    return folder


def content_key(*parts: object) -> str:
    """A digest of all parts in their order: of a Path the bytes of its file, of anything else its `str`.

    Raises DataError where a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            digest.update(b"file" + _file_digest(part))
        else:
            text = name_bytes(str(part))
            digest.update(b"text" + len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror}. A file that can be read") from error


def cached_tensors(key: str, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors kept under `key`, a digest of all that they depend on; absent or damaged ones are built and kept.

    Where the cache cannot be written, the tensors are built each time.
    """
    path = cache_dir() / "decoded" / f"{key}.safetensors"
    tensors = _load(path)
    if tensors is None:
        tensors = {name: tensor.contiguous() for name, tensor in build().items()}
        with contextlib.suppress(OSError):
            _save(path, tensors)
    return tensors


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, types and bytes, wherever the tensors lie."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no other iterator)
            kept = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError, ValueError):
        return None
    return tensors if kept == tensors_digest(tensors) else None


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent
    ) as folder:  # beside the target: one file system, so that the move is atomic
        new = Path(folder) / path.name
        save_file(tensors, new, metadata={"digest": tensors_digest(tensors)})
        os.replace(new, path)

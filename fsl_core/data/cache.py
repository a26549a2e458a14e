"""The place of data on this machine, and decoded images kept so that they are decoded once.

What is kept is never trusted blindly: a file counts only if this user wrote it, under the key that
is asked for, and its bytes are still those that were written. A large file is not read to the end
each time to find out. A note beside it says in which state (size and times) its bytes were checked.
So the file is written first and the note after it: if the process is killed in between, there is
a file without a note, which is checked by its bytes. The other order could leave a note that
vouches for a file nobody has checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsl_core.data.folders import name_bytes
from fsl_core.data.work import for_each
from fsl_core.errors import CacheError, DataError
from fsl_core.files.private import cache_dir, private_folder
from fsl_core.files.reading import open_regular
from fsl_core.files.writing import replacing
from fsl_core.text import printable

logger = logging.getLogger(__name__)
"""Says what is not used or not kept. Without a handler Python writes such a line to stderr."""

SEALED = 1 << 26
"""Bytes from which on a file of the cache is not read to the end each time."""

SHA256 = re.compile("[0-9a-f]{64}")

JUST_NOW = 2_000_000_000
"""Nanoseconds within which a file system may give two changes of a file the same time."""


def data_root(root: Path | str | None = None) -> Path:
    """The folder of the data sets.

    It is the option `root`, or else the environment variable FSL_DATA, or else <cache>/datasets.
    Raises DataError if the folder that was named does not exist.
    """
    named = root or os.environ.get("FSL_DATA")
    if not named:
        return cache_dir() / "datasets"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "option root" if root else "environment variable FSL_DATA"
        raise DataError(
            f"{folder}: named by {source}, but no such folder. "
            "An existing folder: `-s episodes.root=DIR` or FSL_DATA"
        )
    return folder


Part = Path | str | float | tuple[float, ...] | None
"""What a key may be made of: a file, or a plain value."""


def content_key(*parts: Part, under: Path | None = None, tolerant: bool = False) -> str:
    """A digest of all parts in their order: of a Path the bytes of its file, else the `str`.

    The parts keep their order, and callers sort their files: the order in which a file system lists
    them differs between machines, and the same data must have the same key.

    under:    a folder that the files lie in. What their bytes were is then remembered, and a file
        whose size and times have not changed since is not read again; FSL_HASH_ALL=1 reads all.
    tolerant: with `under`: of a file that cannot be read the reason counts. Otherwise such a file
        raises DataError.
    """
    files = [part for part in parts if isinstance(part, Path)]
    contents = iter(_file_digests(files, under, tolerant))
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            digest.update(b"file" + next(contents))
        else:
            text = name_bytes(str(part))
            # With its length: ("ab", "c") and ("a", "bc") are different data.
            digest.update(b"text" + len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def cached_tensors(
    key: str,
    build: Callable[[], Mapping[str, Tensor]],
    check: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> tuple[dict[str, Tensor], str]:
    """The tensors kept under `key`, or else built and kept; and their `tensors_digest`.

    Kept ones are used only if this user wrote them, under this key, and not a byte has changed
    since. If the cache cannot be used or written, one line is logged, and they are built.

    key:   a digest of all that they depend on.
    check: raises anything if kept tensors are not what `build` makes; they are then built.
    """
    path = _folder() / f"{key}.safetensors"
    try:
        kept = _load(path, key)
        if kept is not None:
            check(kept[0])
            return kept
    except CacheError as error:
        _tell_unsafe(error)
    except Exception as error:  # it can be built again, so the kind of fault does not matter
        _tell(f"{path}: not used ({_reason(error)}). It is built again")
    tensors = {name: tensor.contiguous() for name, tensor in build().items()}
    digest = tensors_digest(tensors)
    record = {"key": key, "digest": digest}
    if _keep(path, lambda new: save_file(tensors, new, metadata=record)):
        _seal(path, _state(path), digest)  # after the file: it vouches for what is there now
    return tensors, digest


def forget(keys: Iterable[str]) -> None:
    """Remove what `cached_tensors` kept under these keys; it may be absent."""
    for key in keys:
        for ending in (".safetensors", ".json"):
            with suppress(OSError):
                (_folder() / f"{key}{ending}").unlink()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, types and bytes; the same on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _folder() -> Path:
    return cache_dir() / "decoded"


def _shared() -> bool:
    """Whether the user trusts everybody who can write to the cache."""
    return _told_to("FSL_CACHE_SHARED")


def _refuse_foreign(path: Path) -> bool:
    """Whether a file is there. Raises CacheError if somebody else may have written it."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if _shared():
        return True
    private_folder(path.parent)
    if not stat.S_ISREG(found.st_mode):
        raise CacheError(f"{path}: not a regular file. A file that fsl wrote")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise CacheError(f"{path}: not used, as it belongs to user {found.st_uid}. A file of yours")
    return True


def _load(path: Path, key: str) -> tuple[dict[str, Tensor], str] | None:
    if not _refuse_foreign(path):
        return None
    state = _state(path)  # before it is read: a change while it is read shows afterwards
    with safe_open(path, "pt") as file:  # its tensors are parts of the file, not yet read
        names = file.keys()  # it has no other iterator
        tensors = {name: file.get_tensor(name) for name in names}
        record = file.metadata() or {}
    if record.get("key") != key:
        raise ValueError("kept for other data, or by an earlier version")
    _refuse_changed(path, state, tensors, str(record.get("digest")))
    return tensors, str(record["digest"])


def _refuse_changed(path: Path, state: list[int], tensors: dict[str, Tensor], digest: str) -> None:
    """Raise ValueError if the bytes are not those that were written.

    Reading a large file to the end takes seconds. A note beside it says that this was done, and it
    is not done again while the file's size and times stay the same.
    """
    note = {"digest": digest, "state": state}
    trusted = state[0] >= SEALED and not _told_to("FSL_HASH_ALL")
    if trusted and _load_json(path.with_suffix(".json")) == note:
        _read_ahead(path)
        return
    if digest != tensors_digest(tensors):
        raise ValueError("its bytes have changed")
    if _settled(state):
        _seal(path, state, digest)


def _seal(path: Path, state: list[int], digest: str) -> None:
    """Note beside a large file that in this state it holds the bytes of this digest."""
    if state[0] >= SEALED:
        note = json.dumps({"digest": digest, "state": state})
        _keep(path.with_suffix(".json"), lambda new: new.write_text(note, encoding="utf-8"))


def _read_ahead(path: Path) -> None:
    """Have the system read the file from now on, in its order, before episodes ask for pictures."""
    if hasattr(os, "posix_fadvise"):
        with open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Write a file of the cache, or say in one line why it is not kept: the cache is optional."""
    try:
        if _shared():
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            private_folder(path.parent)
        with replacing(path) as new:
            write(new)
        return True
    except CacheError as error:
        _tell_unsafe(error)
    except (OSError, SafetensorError) as error:
        _tell(f"{path}: not kept ({_reason(error)}). It is made again each time")
    return False


def _file_digests(files: Sequence[Path], under: Path | None, tolerant: bool) -> list[bytes]:
    """sha256 of each file's bytes, read only if the index of the folder does not know them."""
    if under is None:
        return [_read_digest(file) for file in files]
    top, prefix = os.path.realpath(under), os.path.join(under, "")
    path = _folder() / f"files-{content_key(top)}.json"
    names = [str(file).removeprefix(prefix) for file in files]
    states = [_state(file, tolerant) for file in files]
    known = _load_index(path, top)
    found: dict[int, bytes] = {}
    for i, (name, state) in enumerate(zip(names, states, strict=True)):
        if digest := _remembered(known.get(name), state):
            found[i] = digest
    unknown = [i for i in range(len(files)) if i not in found]

    failed: set[int] = set()

    def read(n: int) -> None:
        i = unknown[n]
        try:
            found[i] = _read_digest(files[i])
        except DataError as error:
            if not tolerant:
                raise
            failed.add(i)
            found[i] = hashlib.sha256(b"unreadable " + name_bytes(str(error))).digest()

    if unknown:
        started = time.time_ns()  # a file that changes from now on is not remembered
        for_each(read, len(unknown), "reading files")
        known = {name: entry for name, entry in known.items() if os.path.lexists(under / name)}
        for i in unknown:
            known.pop(names[i], None)
            if i not in failed and _settled(states[i], started):
                known[names[i]] = [*states[i], found[i].hex()]
        text = json.dumps({"folder": top, "files": known})
        _keep(path, lambda new: new.write_text(text, encoding="utf-8"))
    return [found[i] for i in range(len(files))]


def _load_index(path: Path, top: str) -> dict[str, list[Any]]:
    """{name: [*state, sha256 in hexadecimal]} of files under a folder."""
    if _told_to("FSL_HASH_ALL"):
        return {}
    record = _load_json(path)
    if record is None:
        return {}
    try:
        files = record["files"]
        if record["folder"] == top and all(map(_is_entry, files.values())):
            return files
    except (TypeError, KeyError, AttributeError):
        pass
    _tell(f"{path}: not used (damaged, or of another folder). Files are read again")
    return {}


def _is_entry(entry: Any) -> bool:
    return type(entry) is list and len(entry) == 4 and bool(SHA256.fullmatch(entry[3]))


def _remembered(entry: list[Any] | None, state: list[int]) -> bytes | None:
    return bytes.fromhex(entry[3]) if entry and entry[:3] == state else None


def _load_json(path: Path) -> dict[str, Any] | None:
    """The mapping that a file of the cache holds, or None if there is none that can be used."""
    try:
        if not _refuse_foreign(path):
            return None
        record = json.loads(path.read_bytes())
        if isinstance(record, dict):
            return record
        raise ValueError("not a JSON object")
    except CacheError as error:
        _tell_unsafe(error)
    except Exception as error:  # it can be made again, so the kind of fault does not matter
        _tell(f"{path}: not used ({_reason(error)}). Files are read again")
    return None


def _state(file: Path, tolerant: bool = False) -> list[int]:
    """What changes when a file does: its size and two times.

    Any program may set the time of modification back (`mtime`), but not the time of the last change
    of the file's entry (`ctime`).
    """
    try:
        found = os.stat(file)
    except OSError as error:
        if tolerant:
            return []
        raise DataError(f"{file}: {error.strerror}. A file that can be read") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _settled(state: list[int], now: int | None = None) -> bool:
    """Whether a change of the file after this would show in its times."""
    return max(state[1:]) < (now or time.time_ns()) - JUST_NOW


def _read_digest(file: Path) -> bytes:
    with open_regular(file) as opened:
        try:
            return hashlib.file_digest(opened, "sha256").digest()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}. A file that can be read") from error


def _told_to(variable: str) -> bool:
    """Whether a switch in the environment is on."""
    return os.environ.get(variable, "") not in ("", "0")


def _tell_unsafe(error: CacheError) -> None:
    trust = "or FSL_CACHE_SHARED=1 to trust them"
    _tell(f"{error}, {trust}. Pictures are decoded each time")


_told: set[str] = set()


def _tell(line: str) -> None:
    """Log a line, once in a process: a cache that cannot be used is asked for every split."""
    if line not in _told:
        _told.add(line)
        logger.warning("%s", printable(line))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__

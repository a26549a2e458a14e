"""One-file plugins: read once, and imported where this user has asked for those very bytes.

A file that the command line names, or that lies beside a recipe, is a program which the user runs.
A run directory and a saved predictor name such files too, and may come from somebody else: then
only files are imported that this user has run before, unless they say otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import platformdirs
from filelock import FileLock, Timeout

from fsl_core.errors import PluginError
from fsl_core.files.writing import write_file
from fsl_core.text import printable

LIST = "trusted-plugins.json"
GRANTED = "FSL_GRANTED_PLUGINS"
"""Environment variable by which a command hands its files to the processes it starts."""

KEPT = 1000
LARGEST = 2**24
"""Entries of the list that are kept, the newest; bytes of a one-file plugin."""


@dataclass(frozen=True)
class PluginSource:
    """The bytes of a one-file plugin. What is hashed is what runs, whatever becomes of the file."""

    path: Path
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> PluginSource:
        """OSError where it is not a file that can be read."""

        def opener(name: str, flags: int) -> int:
            return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait

        with open(path, "rb", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OSError(f"more than {LARGEST} bytes")
        return cls(path, content)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def key(self) -> tuple[str, str]:
        """Path, without symlinks, and digest."""
        return str(self.path.resolve()), self.sha256

    def load(self) -> ModuleType:
        """Import it."""
        name = f"fsl_plugin_file_{self.path.stem}"
        loader = _BytesLoader(name, str(self.path), self.content)
        spec = spec_from_file_location(name, self.path, loader=loader)
        assert spec is not None  # a loader was given
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and type hints look their module up by name
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


class _BytesLoader(SourceFileLoader):
    """Compiles the bytes that were read: bytecode beside the file may be of another source."""

    def __init__(self, name: str, path: str, content: bytes):
        super().__init__(name, path)
        self._content = content

    def get_code(self, fullname: str):
        return self.source_to_code(self._content, self.path)


@dataclass(frozen=True)
class RecordedPlugins:
    """One-file plugins that a run directory or a predictor names.

    where:   the file that names them.    files: their sha256 at that time, by path.
    trusted: the user has said to import them, known or not.
    tell:    is told of each one that is imported.
    """

    where: str
    files: Mapping[str, str]
    trusted: bool = False
    tell: Callable[[str], None] = lambda text: None

    def admitted(self, left_out: Callable[[str], bool]) -> list[PluginSource]:
        """Those that may be imported, read. PluginError names every other one, and why.

        left_out: whether a path is not to be loaded at all, so that nothing of it matters.
        """
        known = TrustedPlugins()
        refused: list[str] = []
        admitted: dict[str, PluginSource] = {}
        for path in self.files:
            try:
                if not left_out(path):
                    admitted[path] = self._admit(path, known)
            except PluginError as error:
                refused.append(str(error))
        if refused:
            raise PluginError("\n".join(refused))
        for path, source in admitted.items():
            changed = self.files[path] not in ("", source.sha256)
            self.tell(
                f"imported {source.path}, a one-file plugin that {self.where} names"
                f"{'; it has changed since' if changed else ''}"
            )
        return [*admitted.values()]

    def _admit(self, path: str, known: TrustedPlugins) -> PluginSource:
        if "\0" in path or not Path(path).is_absolute():
            raise self._refusal(path, "is not an absolute path", _ITS_FOLDER)
        try:
            resolved = Path(path).resolve(strict=True)
            seen = known.digests(str(resolved))
            if not (self.trusted or seen):
                raise self._refusal(path, f"is not known to you{known.hint}", _READ_IT)
            source = PluginSource.read(resolved)
        except PermissionError as error:
            raise self._refusal(path, "is not readable for you", _ITS_FOLDER) from error
        except (FileNotFoundError, NotADirectoryError, RuntimeError) as error:
            # RuntimeError: symlinks in a circle
            raise self._refusal(path, "is missing", _ITS_FOLDER) from error
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
            raise self._refusal(path, reason, _ITS_FOLDER) from error
        if not (self.trusted or source.sha256 in seen):
            raise self._refusal(path, "has changed since you ran it", _READ_IT)
        return source

    def _refusal(self, path: str, reason: str, remedy: str) -> PluginError:
        without = printable(shlex.quote(Path(path).stem))
        return PluginError(
            f"{self.where}: one-file plugin {path!r} {reason}. "
            f"{remedy}, or --no-plugin {without} to go without it"
        )


_ITS_FOLDER = "--plugins-dir with a folder that has it"
_READ_IT = "Read it, then --trust-plugins to run it"


class TrustedPlugins:
    """The list of one-file plugins that this user has run: paths, each with digests.

    It counts only where nobody else can have written to it.
    hint: why it does not count, for a message.
    """

    def __init__(self) -> None:
        self.path = state_dir() / LIST
        self.hint = ""
        self._digests = self._read()
        for path, digest in granted():
            self._digests.setdefault(path, []).append(digest)

    def digests(self, path: str) -> list[str]:
        return self._digests.get(path, [])

    def _read(self) -> dict[str, list[str]]:
        try:
            for place in (self.path.parent, self.path):
                if not _is_own(place.lstat()):
                    self.hint = f" ({place} is ignored: others can write to it)"
                    return {}
            data = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.hint = f" ({self.path} cannot be read: {error})"
            return {}
        listed = data.get("plugins") if isinstance(data, dict) else None
        return _grouped(listed if isinstance(listed, list) else [])


def remember(files: Mapping[str, str]) -> str:
    """Put one-file plugins, digests by path, on the user's list; returns why not, or nothing."""
    known = TrustedPlugins()
    new = [(path, digest) for path, digest in files.items() if digest not in known.digests(path)]
    if not new:
        return ""
    if known.hint:
        return known.hint.strip(" ()")
    try:
        known.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{known.path}.lock", timeout=10, mode=0o600):
            again = TrustedPlugins()  # another process may have added to it
            entries = [(p, d) for p, digests in again._read().items() for d in digests]
            kept = [*dict.fromkeys([*entries, *new])][-KEPT:]
            plugins = [{"path": path, "sha256": digest} for path, digest in kept]
            write_file(known.path, json.dumps({"plugins": plugins}, indent=1).encode())
            known.path.chmod(0o600)
    except (OSError, Timeout) as error:
        return f"{known.path}: {getattr(error, 'strerror', None) or error}"
    return ""


def state_dir() -> Path:
    """The environment variable FSL_STATE, else the user's folder for the state of programs."""
    named = os.environ.get("FSL_STATE")
    return Path(named or platformdirs.user_state_dir("fsl-core")).expanduser()


def granted() -> set[tuple[str, str]]:
    """(path, digest) of what the command that started this process was given."""
    try:
        return {(path, digest) for path, digest in json.loads(os.environ.get(GRANTED, "[]"))}
    except (ValueError, TypeError):
        return set()


@contextmanager
def granting(files: Mapping[str, str]) -> Iterator[None]:
    """Within this context, processes that this one starts may import these files, digests by path.

    They do not look for modules in the current folder, as `python -m` does: it may be a stranger's.
    """
    changed = {GRANTED: json.dumps(sorted({*granted(), *files.items()}))}
    if (
        Path(sys.path[0] or ".").resolve() != Path.cwd()
    ):  # else that is how this process was started
        changed["PYTHONSAFEPATH"] = "1"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _path_and_digest(entry: object) -> tuple[object, object]:
    return (entry.get("path"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)


def _grouped(entries: Iterable[object]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        path, digest = _path_and_digest(entry)
        if isinstance(path, str) and isinstance(digest, str):
            found.setdefault(path, []).append(digest)
    return found


def _is_own(found: os.stat_result) -> bool:
    """Of this user, not a symlink, and nobody else may write to it."""
    if stat.S_ISLNK(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022

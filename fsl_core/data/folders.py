"""Folders of pictures: one rule for what is read and what is passed over, at every depth.

What is found comes in an order of its own, by name. The order in which a file system lists a folder
differs between machines, and with it would differ which pictures an episode draws.
"""

from __future__ import annotations

import errno
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fsl_core.data.formats import PICTURE_ENDINGS, open_picture
from fsl_core.errors import DataError
from fsl_core.text import printable

HIDDEN = "hidden (the name begins with a dot)"
SYSTEM = "made by an operating system"
ENDING = "not a picture by its ending"
OUTSIDE = "picture outside of a class folder"
BESIDE = "folder beside those of the splits"
DANGLING = "link to nothing"
AGAIN = "reached before by another name"
SPECIAL = "neither a file nor a folder"
UNREADABLE = "unreadable"

SYSTEM_NAMES = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
        "thumbs.db:encryptable",
    }
)
"""Names, in small letters, of what macOS, Windows, Linux and network storage leave behind."""

NAMED = 20
"""Faults that one message names; of more it says how many there are."""


def nfc(name: str) -> str:
    """The name in Unicode's composed form, in which names are compared: macOS spells them apart."""
    return unicodedata.normalize("NFC", name)


def name_bytes(name: str) -> bytes:
    """A name as bytes to hash or keep, even if it is not UTF-8 in the file system."""
    return name.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that is not read.

    reason: one of the reasons of this module, the same for many.
    detail: what else is known of this one.
    """

    path: Path
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{printable(self.path)}: {printable(self.detail) or self.reason}"


@dataclass(frozen=True)
class Found:
    """What a search has found.

    paths: pictures or class folders, in an order that does not depend on the file system.
    passed_over: the rest.
    """

    paths: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def counted(passed_over: Iterable[PassedOver]) -> str:
    """How many were passed over for each reason, such as `2 link to nothing, 1 unreadable`."""
    counts = Counter(item.reason for item in passed_over)
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))


def find_pictures(folder: Path) -> Found:
    """The pictures in a folder and its subfolders, and everything there that is passed over.

    A file is a picture by its ending. Links are followed, and what is reached twice counts once: by
    its own name rather than that of a link. A link to a folder around the search is passed over.
    """
    search = _Search(folder)
    search.run()
    return Found(
        sorted(search.pictures, key=lambda path: _order(path, folder)),
        sorted(search.passed_over, key=lambda item: _order(item.path, folder)),
    )


def find_class_folders(parent: Path, *, once: bool = True) -> Found:
    """The folders in a folder, each a class, and what lies beside them.

    once: two links to one folder are one class; False if both names are meant.
    Raises DataError if the folder cannot be read, or two names differ only in their Unicode form.
    """
    try:
        entries = _entries(parent)
    except OSError as error:
        raise DataError(f"{printable(parent)}: {_why(error)}. A folder that can be read") from error
    folders: dict[tuple[int, int] | str, Path] = {}
    above = _ancestors(parent)
    passed_over: list[PassedOver] = []
    links_last = sorted(entries, key=lambda entry: entry.is_symlink())
    for entry in links_last:  # a folder counts by its own name rather than by that of a link
        path = parent / entry.name
        kind = _kind(entry)
        if isinstance(kind, PassedOver):
            passed_over.append(kind)
        elif kind == "file":
            passed_over.append(PassedOver(path, OUTSIDE if _is_picture(entry.name) else ENDING))
        else:
            identity = _identity(path)
            if identity in above or (once and identity in folders):
                passed_over.append(PassedOver(path, AGAIN, _same_as(folders.get(identity))))
            else:
                folders[identity if once else str(path)] = path
    found = sorted(folders.values(), key=lambda path: _order(path, parent))
    if once:
        _refuse_same_names(parent, found)
    return Found(found, sorted(passed_over, key=lambda item: _order(item.path, parent)))


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below. Raises DataError, naming all folders without access."""
    found = find_pictures(folder)
    refuse_unreadable(unreadable(found.passed_over))
    return found.paths


def class_images(folder: Path) -> list[Path]:
    """The pictures of a class. Raises DataError if there are none."""
    files = image_files(folder)
    if not files:
        raise DataError(no_pictures(folder))
    return files


def no_pictures(folder: Path, passed_over: Sequence[PassedOver] = ()) -> str:
    """The message about a class folder without pictures."""
    beside = f" (passed over: {counted(passed_over)})" if passed_over else ""
    fit = "At least one file such as .jpg or .png, or no folder"
    return f"{printable(folder)}: no images in this class folder{beside}. {fit}"


def as_unreadable(file: Path, error: DataError) -> PassedOver:
    """The file, passed over because of an error that begins with its name."""
    why = str(error).removeprefix(f"{file}: ").removeprefix(f"{printable(file)}: ")
    return PassedOver(file, UNREADABLE, why)


def unreadable(items: Iterable[object]) -> list[PassedOver]:
    """Those of the items that were passed over because they cannot be read."""
    return [item for item in items if isinstance(item, PassedOver) and item.reason == UNREADABLE]


def refuse_unreadable(
    items: Sequence[PassedOver], of: int = 0, fit: str = "Files and folders that can be read"
) -> None:
    """Raise DataError that names them, with the reasons: all together, or the first of very many.

    of:  how many there are with those that can be read.
    fit: what would do instead.
    """
    if not items:
        return
    if len(items) == 1:
        only = items[0]
        raise DataError(str(only) if ". " in only.detail else f"{only}. {fit}")
    lines = [str(item) for item in items[:NAMED]]
    more = f", of which {NAMED} are named here" if len(items) > NAMED else ""
    among = f" of {of}" if of else ""
    lines.append(f"{len(items)}{among} pictures and folders cannot be read{more}. {fit}")
    raise DataError("\n".join(lines))


def require_folder(folder: Path, where: str, fit: str) -> None:
    """Raise DataError unless this is a folder; `where` begins the message, `fit` ends it."""
    try:
        if os.path.isdir(folder):
            return
        folder.stat()
        state = "is not a folder"
    except FileNotFoundError:
        state = "does not exist"
    except OSError as error:
        state = f"cannot be read ({_why(error)})"
    raise DataError(f"{where} {state}. {fit}")


def picture_size(file: Path) -> tuple[int, int] | None:
    """Width and height in pixels, from the head of the file; None if it is not a picture."""
    try:
        with warnings.catch_warnings(action="ignore"), open_picture(file) as image:
            return image.size
    except DataError:
        return None


Key = TypeVar("Key")


class _Search:
    """The pictures below a folder. Links wait until all real files are known by their own names."""

    def __init__(self, top: Path):
        self.pictures: list[Path] = []
        self.passed_over: list[PassedOver] = []
        self._top = top
        self._links: list[tuple[Path, str]] = []  # with what they lead to
        self._folders: dict[tuple[int, int] | str, Path | None] = dict.fromkeys(_ancestors(top))
        self._files: dict[str, Path | None] = {}

    def run(self) -> None:
        self._folder(self._top)
        while self._links:
            waiting, self._links = self._links, []
            for path, kind in sorted(waiting, key=lambda link: _order(link[0], self._top)):
                if kind == "folder":
                    self._folder(path)
                else:
                    self._file(path, os.path.realpath(path))

    def _folder(self, top: Path) -> None:
        below = [top]
        while below:
            folder = below.pop()
            if folder != self._top and not self._first(self._folders, _identity(folder), folder):
                continue
            try:
                entries = _entries(folder)
            except OSError as error:
                self.passed_over.append(PassedOver(folder, UNREADABLE, _why(error)))
                continue
            real = os.path.realpath(folder)
            for entry in entries:
                path, kind = folder / entry.name, _kind(entry)
                if isinstance(kind, PassedOver):
                    self.passed_over.append(kind)
                elif kind == "file" and not _is_picture(entry.name):
                    self.passed_over.append(PassedOver(path, ENDING))
                elif entry.is_symlink():
                    self._links.append((path, kind))
                elif kind == "folder":
                    below.append(path)
                else:
                    self._file(path, os.path.join(real, entry.name))

    def _file(self, path: Path, real: str) -> None:
        if self._first(self._files, real, path):
            self.pictures.append(path)

    def _first(self, seen: dict[Key, Path | None], identity: Key, path: Path) -> bool:
        if identity in seen:
            self.passed_over.append(PassedOver(path, AGAIN, _same_as(seen[identity])))
            return False
        seen[identity] = path
        return True


def _kind(entry: os.DirEntry[str]) -> str | PassedOver:
    """file, folder, or why it is neither."""
    path = Path(entry.path)
    if entry.name.startswith("."):
        return PassedOver(path, HIDDEN)
    if entry.name.casefold() in SYSTEM_NAMES:
        return PassedOver(path, SYSTEM)
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return PassedOver(path, SPECIAL if os.path.exists(path) else DANGLING)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return PassedOver(path, DANGLING)
        return PassedOver(path, UNREADABLE, _why(error))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: (nfc(entry.name), name_bytes(entry.name)))


def _order(path: Path, top: Path) -> list[tuple[str, bytes]]:
    """Sorts paths part by part; by bytes if two differ in their Unicode form alone."""
    return [(nfc(part), name_bytes(part)) for part in path.relative_to(top).parts]


def _identity(folder: Path) -> tuple[int, int] | str:
    """Equal for two paths to one folder."""
    try:
        state = folder.stat()
    except OSError:
        return str(folder)
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(folder)


def _ancestors(folder: Path) -> set[tuple[int, int] | str]:
    """The folder itself and those that it lies in, by its name and in truth."""
    places = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
    return {_identity(above) for place in places for above in (place, *place.parents)}


def _same_as(path: Path | None) -> str:
    return f"the same as {path}" if path else "a link to a folder that it lies in"


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_ENDINGS


def _refuse_same_names(parent: Path, folders: Iterable[Path]) -> None:
    by_name: dict[str, Path] = {}
    for folder in folders:
        twin = by_name.setdefault(nfc(folder.name), folder)
        if twin is not folder:
            raise DataError(
                f"{printable(parent)}: folders {twin.name!a} and {folder.name!a} have one name, "
                f"{nfc(folder.name)!r}, in two Unicode forms. One folder for each class"
            )

"""Which pictures each class of a split has: found in folders, or named by a list."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from fsl_core.data import folders
from fsl_core.data.folders import PassedOver, nfc
from fsl_core.errors import DataError
from fsl_core.files.reading import open_regular
from fsl_core.text import printable

FEW = "class with fewer pictures than min_images"
TWICE = "named before in the same class"


@dataclass(frozen=True)
class ClassFiles:
    """The pictures of one class, and what lies beside them.

    source: the folder of the class, or the list that names it.
    """

    source: Path
    files: list[Path]
    passed_over: list[PassedOver] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """The classes of a split by their names, and what lies beside them."""

    classes: dict[str, ClassFiles]
    beside: list[PassedOver] = field(default_factory=list)

    @property
    def files(self) -> dict[str, list[Path]]:
        return {name: found.files for name, found in self.classes.items()}

    @property
    def all_files(self) -> list[Path]:
        return list(chain(*self.files.values()))

    @property
    def passed_over(self) -> list[PassedOver]:
        return [*self.beside, *chain(*(found.passed_over for found in self.classes.values()))]

    def without(self, unreadable: Mapping[Path, str]) -> Listing:
        """The listing without these files, which are passed over for the reasons given."""

        def kept(found: ClassFiles) -> ClassFiles:
            bad = [file for file in found.files if file in unreadable]
            left_out = [PassedOver(file, folders.UNREADABLE, unreadable[file]) for file in bad]
            files = [file for file in found.files if file not in unreadable]
            return replace(found, files=files, passed_over=[*found.passed_over, *left_out])

        return replace(self, classes={name: kept(found) for name, found in self.classes.items()})

    def of_classes(self, wanted: Callable[[str], bool]) -> Listing:
        """The listing of the classes whose names are wanted."""
        return replace(self, classes={n: found for n, found in self.classes.items() if wanted(n)})

    def of_files(self, wanted: Callable[[str, Path], bool]) -> Listing:
        """The listing of wanted files alone; a class that none is left of is not in it."""
        left = {
            name: replace(found, files=[file for file in found.files if wanted(name, file)])
            for name, found in self.classes.items()
        }
        return replace(self, classes={name: found for name, found in left.items() if found.files})

    def at_least(self, count: int) -> Listing:
        """The listing of classes with this many pictures; smaller ones are passed over."""
        few = {name: c for name, c in self.classes.items() if len(c.files) < count}
        left_out = [
            PassedOver(
                _of_class(found.source, name), FEW, f"{len(found.files)} of {count} pictures"
            )
            for name, found in few.items()
        ]
        kept = self.of_classes(lambda name: name not in few)
        return replace(kept, beside=[*self.beside, *left_out])

    def refuse_empty(self) -> None:
        """Raise one DataError with every class that has no images."""
        empty = [
            folders.no_pictures(found.source, found.passed_over)
            for found in self.classes.values()
            if not found.files
        ]
        if empty:
            raise DataError("\n".join(empty))


def _of_class(source: Path, name: str) -> Path:
    """What a class is called where it is passed over: its folder, or its list and its name."""
    return source / name if source.is_file() else source


def find_classes(top: Path, depth: int = 1) -> tuple[dict[str, Path], list[PassedOver]]:
    """Class folders by their names, `depth` folders below top, and what is passed over on the way.

    The name of a class below others has theirs before it: `birds/heron`.
    """
    found = folders.find_class_folders(top)
    below, passed_over = {nfc(path.name): path for path in found.paths}, found.passed_over
    if depth == 1:
        return below, passed_over
    classes: dict[str, Path] = {}
    for name, path in below.items():
        inner, beside = find_classes(path, depth - 1)
        classes |= {f"{name}/{own}": folder for own, folder in inner.items()}
        passed_over = [*passed_over, *beside]
    return classes, passed_over


def list_folders(classes: Mapping[str, Path], beside: Sequence[PassedOver] = ()) -> Listing:
    """The pictures in the folders of these classes and below."""
    found = {name: folders.find_pictures(folder) for name, folder in classes.items()}
    listed = {
        name: ClassFiles(classes[name], pictures.paths, pictures.passed_over)
        for name, pictures in found.items()
    }
    return Listing(listed, list(beside))


def read_list(file: Path, root: Path) -> Listing:
    """The pictures that a list names.

    file: .csv with the columns filename and label, as mini-ImageNet's; or .json with class_names
        and class_roots, the folder of each class, as easyfsl's.
    root: where pictures lie that are not named by a whole path: in it, in its folder `images`, or
        beside the list.
    Raises DataError, which names the list and the lines at fault.
    """
    if file.suffix == ".json":
        return _of_json(file, root)
    if file.suffix == ".csv":
        return _of_csv(file, root)
    raise DataError(f"{printable(file)}: a list of pictures. A file .csv or .json")


def _of_csv(file: Path, root: Path) -> Listing:
    classes: dict[str, dict[Path, None]] = {}
    twice: dict[str, list[PassedOver]] = {}
    faults = []
    places = _Places(file, root)
    for line, name, label in _rows(file):
        path = places.find(name)
        if path is None:
            faults.append(f"{printable(file)}:{line}: {printable(name)}: no such picture")
            continue
        files = classes.setdefault(nfc(label), {})
        if path in files:
            twice.setdefault(nfc(label), []).append(PassedOver(path, TWICE))
        files[path] = None
    if faults:
        more = f", of which {folders.NAMED} are named here" if len(faults) > folders.NAMED else ""
        fit = f"Pictures in {printable(root)}, in its folder images, or beside the list"
        told = f"{printable(file)}: {len(faults)} pictures are not there{more}. {fit}"
        raise DataError("\n".join([*faults[: folders.NAMED], told]))
    ordered = sorted(classes)
    return Listing(
        {name: ClassFiles(file, list(classes[name]), twice.get(name, [])) for name in ordered}
    )


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, filename and label of each row."""
    try:
        with open_regular(file) as raw:
            text = raw.read().decode("utf-8-sig")
        reader = csv.DictReader(text.splitlines(), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if not {"filename", "label"} <= set(columns):
            found = ", ".join(map(printable, columns)) or "nothing"
            raise DataError(f"{printable(file)}:1: columns {found}. Columns filename and label")
        for row in reader:
            name, label = (row["filename"] or "").strip(), (row["label"] or "").strip()
            if not name or not label:
                where = f"{printable(file)}:{reader.line_num}"
                raise DataError(f"{where}: no filename or no label. Both in every row")
            yield reader.line_num, name, label
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{printable(file)}: not CSV in UTF-8 ({error}). Such a file") from error


def _of_json(file: Path, root: Path) -> Listing:
    names, roots = _names_and_roots(file)
    places = _Places(file, root)
    found = {
        name: places.find(folder, folder=True) for name, folder in zip(names, roots, strict=True)
    }
    absent = [f"{printable(roots[i])}" for i, path in enumerate(found.values()) if path is None]
    if absent:
        named = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
        fit = f"Folders in {printable(root)}, beside the list, or from where the command is given"
        raise DataError(f"{printable(file)}: class_roots: no folder {named}. {fit}")
    return list_folders({name: path for name, path in found.items() if path is not None})


def _names_and_roots(file: Path) -> tuple[list[str], list[str]]:
    fit = 'An object {"class_names": [texts], "class_roots": [folders, as many]}'
    try:
        with open_regular(file) as raw:
            record: Any = json.loads(raw.read())
        names, roots = record["class_names"], record["class_roots"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{printable(file)}: not a list of class folders. {fit}") from error
    texts = isinstance(names, list) and isinstance(roots, list)
    if not texts or not all(isinstance(text, str) and text for text in (*names, *roots)):
        raise DataError(f"{printable(file)}: not a list of class folders. {fit}")
    if len(names) != len(roots):
        raise DataError(f"{printable(file)}: {len(names)} names and {len(roots)} folders. {fit}")
    names = [nfc(name) for name in names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(
            f"{printable(file)}: class {printable(twice)} is there twice. Every class once"
        )
    return names, roots


class _Places:
    """Where what a list names may lie."""

    def __init__(self, file: Path, root: Path):
        self._bases = (root, root / "images", file.parent)

    def find(self, name: str, folder: bool = False) -> Path | None:
        """A picture, or a folder, which may also be named from the working folder."""
        exists = os.path.isdir if folder else os.path.isfile
        bases = (*self._bases, Path()) if folder else self._bases
        return next((base / name for base in bases if exists(base / name)), None)

"""Finds and decodes pictures: labelled ones in class folders, and those to predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fsl_core.data import folders
from fsl_core.data.folders import PassedOver, nfc
from fsl_core.data.source import EpisodeSource
from fsl_core.data.vision import decode_images
from fsl_core.episode import TaskShape
from fsl_core.errors import DataError, RunError
from fsl_core.text import printable


@dataclass(frozen=True)
class Pictures:
    """Pictures to predict.

    images: (n, channels, size, size) uint8.
    names: of their files, relative to their folder.
    labels: the right class of each if they lie in class folders, else None.
    skipped: names and reasons of those that could not be read; None if such a picture is an error.
    passed_over: what else lies in the folder.
    """

    images: Tensor
    names: list[str]
    labels: list[str] | None
    skipped: list[tuple[str, str]] | None = None
    passed_over: Sequence[PassedOver] = ()


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures to adapt to.

    images: (n, channels, size, size) uint8, sorted by class.
    classes: their names.
    found: labelled pictures in each class folder.
    shots: of each class, how many of these are used, the first ones.
    passed_over: what else lies in the class folders, and pictures left out as unreadable.
    """

    images: Tensor
    classes: tuple[str, ...]
    found: tuple[int, ...]
    shots: tuple[int, ...]
    passed_over: Sequence[PassedOver] = ()


def require_pictures(where: Path, task: TaskShape) -> None:
    """Raise RunError for a run that does not classify square pictures."""
    shape = tuple(task.input_shape)
    square = len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]
    if task.kind != "classification" or not square:
        raise RunError(
            f"{where}: a run of {task.kind} with items of shape {shape}. "
            "A run that classifies square pictures"
        )


def read_labelled(
    support: Path, source: EpisodeSource, invert: bool, skip_unreadable: bool, unequal: bool
) -> Labelled:
    """The labelled pictures of one folder for each class, sorted by name.

    unequal: use all pictures, where classes have unequal numbers of them; otherwise the first of
        each are used, as many as the smallest class has.
    Raises DataError if the folders do not fit or a picture cannot be read.
    """
    classes, passed_over = find_labelled(support, skip_unreadable)
    if skip_unreadable:  # only then every picture is decoded, to know how many of a class can be
        classes, damaged = _readable(classes, source)
        passed_over += damaged
    found = tuple(map(len, classes.values()))
    shots = found if unequal else (min(found),) * len(found)
    used = [file for files, n in zip(classes.values(), shots, strict=True) for file in files[:n]]
    _, images, damaged = _decode(used, source, invert)
    _refuse(damaged, len(used))
    return Labelled(images, tuple(classes), found, shots, passed_over)


def read_pictures(
    folder: Path,
    classes: Sequence[str],
    source: EpisodeSource,
    invert: bool,
    skip_unreadable: bool,
) -> Pictures:
    """The pictures of a folder and below; with labels if folders have the names of classes.

    folder: or one picture file.
    Raises DataError if there are none, some are unreadable, or only some folders have the name
    of a class.
    """
    found = _find(folder, skip_unreadable)
    if not found.paths:
        raise DataError(f"{printable(folder)}: no pictures. At least one file such as .jpg or .png")
    folder = folder.parent if folder.is_file() else folder
    class_of = _class_of(found.paths, folder, classes)
    files, images, damaged = _decode(found.paths, source, invert)
    if not skip_unreadable or not files:
        _refuse(damaged, len(found.paths))

    def name(file: Path) -> str:
        return file.relative_to(folder).as_posix()

    labels = [class_of[file] for file in files] if class_of else None
    skipped = [(name(item.path), item.detail) for item in damaged] if skip_unreadable else None
    return Pictures(images, [name(file) for file in files], labels, skipped, found.passed_over)


def _class_of(files: Sequence[Path], folder: Path, classes: Sequence[str]) -> dict[Path, str]:
    """The class of each file by the name of its folder; empty if no folder is a class.

    Names are compared as NFC, because systems write accents in one or two characters.
    """
    known = {nfc(name): name for name in classes}
    found, others = {}, []
    for file in files:
        top = file.relative_to(folder).parts[:-1][:1]
        if top and nfc(top[0]) in known:
            found[file] = known[nfc(top[0])]
        else:
            others.append(top)
    if found and others:
        what = "pictures outside of class folders"
        if others[0]:
            what = f"a folder {others[0][0]!r}, which is not a class"
        fit = f"Only folders of {printable(', '.join(classes))}, or pictures alone"
        raise DataError(f"{printable(folder)}: class folders and {what}. {fit}")
    return found


def find_labelled(
    support: Path, skip_unreadable: bool
) -> tuple[dict[str, list[Path]], list[PassedOver]]:
    """The pictures of each class folder, and what lies beside them."""
    folders.require_folder(support, f"{printable(support)}:", "A folder of pictures")
    found = folders.find_class_folders(support)
    if len(found.paths) < 2:
        raise DataError(
            f"{printable(support)}: {len(found.paths)} class folders. "
            "At least two folders of pictures, with the names of their classes"
        )
    of_class = {folder: folders.find_pictures(folder) for folder in found.paths}
    passed_over = [*found.passed_over]
    for pictures in of_class.values():
        passed_over += pictures.passed_over
    if not skip_unreadable:
        _refuse(folders.unreadable(passed_over), 0)
    empty = [
        folders.no_pictures(folder, pictures.passed_over)
        for folder, pictures in of_class.items()
        if not pictures.paths
    ]
    if empty:
        raise DataError("\n".join(empty))
    return {folder.name: pictures.paths for folder, pictures in of_class.items()}, passed_over


def _readable(
    classes: dict[str, list[Path]], source: EpisodeSource
) -> tuple[dict[str, list[Path]], list[PassedOver]]:
    """The pictures of each class that can be read, and the others. DataError for an empty class."""
    readable, unreadable = {}, []
    for name, files in classes.items():
        readable[name], _, damaged = _decode(files, source, invert=False)
        if not readable[name]:
            _refuse(damaged, len(files))
        unreadable += damaged
    return readable, unreadable


def _find(folder: Path, skip_unreadable: bool) -> folders.Found:
    """The pictures of a folder and below, or one picture by its file."""
    if folder.is_file():
        return folders.Found([folder])
    fit = "A folder of pictures, or one picture"
    folders.require_folder(folder, f"{printable(folder)}:", fit)
    found = folders.find_pictures(folder)
    unreadable = folders.unreadable(found.passed_over)
    if not skip_unreadable or any(item.path == folder for item in unreadable):
        _refuse(unreadable, 0)
    return found


def _decode(
    files: Iterable[Path], source: EpisodeSource, invert: bool
) -> tuple[list[Path], Tensor, list[PassedOver]]:
    """The files that can be read, (n, channels, size, size) uint8 of these, and the others."""
    files = list(files)
    images, faults = decode_images(files, source.decode, source.item_task.input_shape)
    kept = [i for i in range(len(files)) if i not in faults]
    for place, i in enumerate(kept):  # in place: a second copy may not fit
        if place != i:
            images[place] = images[i]
    images = images[: len(kept)]
    damaged = [folders.as_unreadable(files[i], error) for i, error in faults.items()]
    return [files[i] for i in kept], images.bitwise_not_() if invert else images, damaged


def _refuse(unreadable: Sequence[PassedOver], of: int) -> None:
    fit = "Whole image files, or --skip-unreadable, which leaves them out"
    folders.refuse_unreadable(unreadable, of, fit)

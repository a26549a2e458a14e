"""CIFAR-100's hundred classes, 600 pictures each, divided for few-shot learning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field

import fsl_core as fsl
from fsl_core.data.augment import Augmentation
from fsl_core.data.cache import content_key, data_root
from fsl_core.data.downloads import download, extract, md5_of, once
from fsl_core.data.folders import class_images
from fsl_core.data.formats import open_picture
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.vision import torchvision, torchvision_dataset
from fsl_core.data.work import for_each

SIDE = 32
PER_CLASS = 600
FOLDERS = ("", "cifarfs", "cifar100/data")
SPLIT_FOLDERS = ("train", "val", "validation", "test", "")
"""Where classes may lie. The folder itself comes last, because there is a class named train."""
ARCHIVE, MEMBERS = "cifar-100-python", ("train", "test", "meta")
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class CifarFs(fsl.PooledEpisodes):
    """Photographs of 100 kinds of things, (3, 32, 32), values 0 .. 1 and not normalised further.

    Classes: `maple_tree` and so on. They are read from the first of these that is found under root
    (or its folder cifarfs, or cifar100/data): one file `<class>.webp` for each class, a grid of
    32 x 32 tiles without gaps, or one folder of images for each class, both also inside train, val
    and test; or else torchvision's CIFAR-100, unpacked, as its archive, or downloaded. The images
    of a class are sorted by the md5 of their pixels, so that episode i is the same whichever it was
    read from.

    CIFAR-100 holds 26 pairs of equal images: 9 inside aquarium_fish, 17 across classes, 15 of these
    across the splits of CIFAR-FS. They are kept, as in published results.

    split cifar-fs: Bertinetto et al. 2019, arXiv:1805.08136: 64 classes to train, 16 to validate,
        20 to test.
    split fc100: Oreshkin et al. 2018, arXiv:1805.10123: 60 / 20 / 20 classes, no superclass in two
        splits.
    augment, of training episodes: none, as in learn2learn's benchmarks. flip: mirrored with
        probability 1/2. crop-flip: cut at random out of a black frame of 4 pixels, then flip, as in
        the code of Lee et al. 2019, arXiv:1904.03758. That code also changes brightness, contrast
        and saturation by up to 0.4 and takes off the mean. Differs: neither is done here.
    """

    name = "cifar-fs"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[
            int,
            Field(ge=1, description="images to predict per class; n_shot + n_query is at most 600"),
        ] = 15,
        root: Annotated[
            Path | None,
            Field(
                description="folder of the class files or folders, or of CIFAR-100; default: "
                "FSL_DATA, else the cache"
            ),
        ] = None,
        split: Annotated[
            Literal["cifar-fs", "fc100"],
            Field(
                description="classes of train / validation / test: 64/16/20, or 60/20/20 without "
                "shared superclasses"
            ),
        ] = "cifar-fs",
        augment: Annotated[
            Augmentation,
            Field(
                description="training images: as they are, mirrored at random, cropped and "
                "mirrored at random"
            ),
        ] = "none",
        download: Annotated[
            bool, Field(description="download CIFAR-100 (170 MB) if nothing is there")
        ] = True,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=(3, SIDE, SIDE),
            augment=augment,
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.split, self.download = root, split, download

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        classes = class_lists(self.split)[split]
        parts, decode = self._find(classes)
        key = content_key("cifar-fs", *parts, under=data_root(self.root))
        return fsl.LabelledPool.cached(
            key, lambda: fsl.LabelledPool.from_classes(_in_order(decode()))
        )

    def _find(
        self, classes: Sequence[str]
    ) -> tuple[list[Path | str], Callable[[], Mapping[str, np.ndarray]]]:
        """What the images depend on, and a function that reads them.

        It gives {class: (600, 32, 32, 3) uint8}, in the order of `classes`.
        """
        try:
            root = data_root(self.root)
        except fsl.DataError as error:
            raise fsl.DataError(f"episodes {self.name!r}: {error}, with {self._wanted}") from error
        found = [(folder, _places(folder, classes)) for folder in (root / name for name in FOLDERS)]
        folder, places = max(found, key=lambda pair: len(pair[1]))
        if set(places) - set(SPLIT_FOLDERS):
            _refuse_missing(folder, classes, places)
            parts: list[Path | str] = []
            for name, place in places.items():
                parts += [name, *_files(place)]
            return parts, lambda: _read_all(places)
        files = [root / ARCHIVE / name for name in MEMBERS]
        if not all(file.is_file() for file in files):
            self._unpack()
        return [*classes, *files], lambda: _read_cifar100(root, classes)

    @property
    def _wanted(self) -> str:
        first = class_lists(self.split)["train"][0]
        return f"{first}.webp or a folder {first} and so on, or {ARCHIVE} of {SOURCE},"

    @once
    def _unpack(self) -> None:
        """Unpack CIFAR-100's archive under root, downloaded if need be."""
        root, published = data_root(self.root), torchvision().datasets.CIFAR100
        archive = root / published.filename
        try:
            if not archive.is_file() or md5_of(archive) != published.tgz_md5:
                self._fetch(archive)
            extract(archive, [f"{ARCHIVE}/{name}" for name in MEMBERS], root / ARCHIVE)
        except fsl.DataError as error:
            where = f"episodes {self.name!r}: no class files or folders, and no whole {ARCHIVE},"
            raise fsl.DataError(
                f"{where} in {root} ({error}). {self._wanted} "
                "in a folder named by `-s episodes.root=DIR` or FSL_DATA"
            ) from error

    def _fetch(self, archive: Path) -> None:
        if not self.download:
            state = "not as published, and " if archive.is_file() else ""
            raise fsl.DataError(f"{state}download: false")
        published = torchvision().datasets.CIFAR100
        download([published.url], archive, published.tgz_md5, megabytes=180)


def class_lists(split: Literal["cifar-fs", "fc100"]) -> dict[fsl.Split, list[str]]:
    """The names of the classes of each split."""
    texts = resources.files("fsl_core.builtin") / "splits"
    return {
        part: (texts / f"{split}-{part}.txt").read_text("utf-8").split()
        for part in get_args(fsl.Split)
    }


def _places(folder: Path, classes: Sequence[str]) -> dict[str, Path]:
    """The grid of each class that is in a folder, or else its folder of images."""
    splits = [folder / split for split in SPLIT_FOLDERS[:-1]]
    holds_classes = {
        base
        for base in splits
        for name in classes
        if (base / name).is_dir() or (base / f"{name}.webp").is_file()
    }
    places = {}
    for name in classes:
        grids_and_folders = (
            place for base in (*splits, folder) for place in (base / f"{name}.webp", base / name)
        )
        of_class = (place for place in grids_and_folders if place not in holds_classes)
        if found := next((place for place in of_class if place.exists()), None):
            places[name] = found
    return places


def _refuse_missing(folder: Path, classes: Sequence[str], places: Mapping[str, Path]) -> None:
    missing = [name for name in classes if name not in places]
    if missing:
        named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise fsl.DataError(
            f"episodes 'cifar-fs': {folder}: {len(places)} of {len(classes)} classes, not {named}. "
            "All of them, or none for torchvision's CIFAR-100"
        )


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else class_images(place)


def _read_all(places: Mapping[str, Path]) -> dict[str, np.ndarray]:
    images: dict[str, np.ndarray] = {}
    names = list(places)

    def read(i: int) -> None:
        images[names[i]] = _read(places[names[i]])

    for_each(read, len(names), "decoding classes", size=1)
    return {name: images[name] for name in names}  # threads are done in any order


def _read(place: Path) -> np.ndarray:
    """(600, 32, 32, 3) uint8: the tiles of a grid, or the images of a folder."""
    files = _files(place)
    tiles = [_tiles(file) for file in files]
    if place.is_dir():
        for file, found in zip(files, tiles, strict=True):
            if len(found) != 1:
                raise fsl.DataError(
                    f"{file}: not one picture of {SIDE}x{SIDE} pixels. "
                    f"The images of {SOURCE} as they are"
                )
    images = np.concatenate(tiles)
    if len(images) != PER_CLASS:
        raise fsl.DataError(
            f"{place}: {len(images)} images of {SIDE}x{SIDE}. "
            f"{PER_CLASS}, all that CIFAR-100 has of a class"
        )
    return images


def _tiles(file: Path) -> np.ndarray:
    """(n, 32, 32, 3) uint8, row by row."""
    with open_picture(file, "A whole image file") as found:
        pixels = np.asarray(found.convert("RGB"))
    height, width, _ = pixels.shape
    if height % SIDE or width % SIDE:
        raise fsl.DataError(
            f"{file}: {width}x{height} pixels. {SIDE}x{SIDE}, or a grid of such tiles without gaps"
        )
    grid = pixels.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return grid.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)


def _read_cifar100(root: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        parts = [torchvision_dataset("CIFAR100", root, train=train) for train in (True, False)]
    except fsl.DataError as error:
        raise fsl.DataError(
            f"{root / ARCHIVE}: not as published. "
            f"Delete it and unpack the archive of {SOURCE} again"
        ) from error
    images = np.concatenate([part.data for part in parts])
    labels = np.concatenate([part.targets for part in parts])
    return {name: images[labels == parts[0].class_to_idx[name]] for name in classes}


def _in_order(images: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(class, (600, 3, 32, 32)), sorted by the md5 of the pixels, as height, width, channel."""
    for name, pixels in images.items():
        digests = [hashlib.md5(image.tobytes(), usedforsecurity=False).digest() for image in pixels]
        order = sorted(range(len(pixels)), key=digests.__getitem__)
        yield name, pixels[order].transpose(0, 3, 1, 2)


@fsl.hookimpl
def fsl_register_episodes(register):
    register(CifarFs)

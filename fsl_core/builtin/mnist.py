"""70,000 handwritten digits."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data.cache import data_root
from fsl_core.data.downloads import download, md5_of, once
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.vision import torchvision, torchvision_dataset

FOLDERS = ("MNIST/raw", "raw", "")
CHECKSUMS = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""md5 of the files of this name and the ending .gz, as torchvision knows them."""
VALIDATION = 10_000
BY_CLASS: dict[fsl.Split, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5),
    "validation": (6, 7),
    "test": (8, 9),
}

Digits = Annotated[list[Annotated[int, Field(ge=0, le=9)]] | None, Field(min_length=2)]


class Mnist(fsl.PooledEpisodes):
    """Handwritten digits, (1, 28, 28), ink 1 on background 0.

    Classes: `0` .. `9`; their images in the order of the files.

    split by-class: other digits in each split, all 70,000 images. By default 0-5, 6-7 and 8-9, for
        2-way episodes.
    split by-image: the same digits (all ten by default), other images: the first 50,000 of the
        training file to train, its last 10,000 to validate, the 10,000 of the test file to test. An
        episode labels its digits in random order, so that tasks of two given digits, or of all ten,
        differ by their labels alone.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", Proc. IEEE
    86(11). MNIST has no published few-shot split: both are this project's.
    """

    name = "mnist"

    def __init__(
        self,
        n_way: Ways = 2,
        n_shot: Shots = 1,
        n_query: Annotated[int, Field(ge=1, description="images to predict per digit")] = 15,
        root: Annotated[
            Path | None,
            Field(
                description="folder of MNIST/raw or of its four files; default: FSL_DATA, else the "
                "cache"
            ),
        ] = None,
        split: Annotated[
            Literal["by-class", "by-image"],
            Field(description="other digits in each split, or other images of the same digits"),
        ] = "by-class",
        train_digits: Annotated[
            Digits, Field(description="digits to train on; default: 0-5, or all")
        ] = None,
        validation_digits: Annotated[
            Digits, Field(description="digits to validate on; default: 6-7, or all")
        ] = None,
        test_digits: Annotated[
            Digits, Field(description="digits to test on; default: 8-9, or all")
        ] = None,
        download: Annotated[
            bool, Field(description="download the four files (12 MB) if they are not there")
        ] = True,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=(1, 28, 28),
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.split, self.download = root, split, download
        named: dict[fsl.Split, list[int] | None] = {
            "train": train_digits,
            "validation": validation_digits,
            "test": test_digits,
        }
        self.digits = {
            part: _distinct(part, digits or self._default(part)) for part, digits in named.items()
        }
        if split == "by-class":
            _refuse_shared(self.digits)

    def _default(self, part: fsl.Split) -> Sequence[int]:
        return BY_CLASS[part] if self.split == "by-class" else range(10)

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        images, labels = self._images
        kept = {
            "train": slice(0, -2 * VALIDATION),
            "validation": slice(-2 * VALIDATION, -VALIDATION),
            "test": slice(-VALIDATION, None),
        }
        if self.split == "by-image":
            images, labels = images[kept[split]], labels[kept[split]]
        return fsl.LabelledPool.from_classes(
            (str(d), images[labels == d][:, None]) for d in self.digits[split]
        )

    @cached_property
    def _images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(70000, 28, 28) uint8 and (70000,) int64: the training file, then the test file."""
        raw = self.fetch()
        with TemporaryDirectory() as folder:
            unpacked = Path(folder) / "MNIST" / "raw"
            unpacked.mkdir(parents=True)
            for name in CHECKSUMS:
                _unpack(raw, name, unpacked / name)
            try:
                parts = [
                    torchvision_dataset("MNIST", Path(folder), train=train)
                    for train in (True, False)
                ]
            except fsl.DataError as error:
                raise fsl.DataError(
                    f"{raw}: not the digits of MNIST ({error.__cause__}). "
                    "Delete its files and fetch them again"
                ) from error
        return torch.cat([part.data for part in parts]), torch.cat([part.targets for part in parts])

    def fetch(self) -> Path:
        """The folder of the four files, packed or not, downloaded if need be.

        Raises DataError if they are absent and cannot be downloaded.
        """
        try:
            root = data_root(self.root)
        except fsl.DataError as error:
            raise fsl.DataError(f"episodes {self.name!r}: {error}, with {_wanted()}") from error
        for folder in (root / name for name in FOLDERS):
            if all(_file(folder, name) for name in CHECKSUMS):
                return folder
        reason = "download: false"
        if self.download:
            try:
                self._download()
                return root / FOLDERS[0]
            except fsl.DataError as error:
                reason = str(error)
        raise fsl.DataError(
            f"episodes {self.name!r}: not all four files of MNIST in {root / FOLDERS[0]} or {root} "
            f"({reason}). {_wanted()} in a folder named by `-s episodes.root=DIR` or FSL_DATA"
        )

    @once
    def _download(self) -> None:
        """Fetch the files that are absent, packed as they are."""
        mirrors, folder = torchvision().datasets.MNIST.mirrors, data_root(self.root) / FOLDERS[0]
        for name, md5 in CHECKSUMS.items():
            if not _file(folder, name):
                urls = [f"{mirror}{name}.gz" for mirror in mirrors]
                download(urls, folder / f"{name}.gz", md5, megabytes=10)


def _wanted() -> str:
    return ", ".join(f"{name}.gz" for name in CHECKSUMS)


def _distinct(part: fsl.Split, digits: Sequence[int]) -> tuple[int, ...]:
    if len(set(digits)) != len(digits):
        raise ValueError(f"{part}_digits: {list(digits)}. Every digit once")
    return tuple(digits)


def _refuse_shared(digits: dict[fsl.Split, tuple[int, ...]]) -> None:
    everything = [digit for part in digits.values() for digit in part]
    if shared := sorted({digit for digit in everything if everything.count(digit) > 1}):
        found = ", ".join(f"{part} {list(part_digits)}" for part, part_digits in digits.items())
        raise ValueError(
            f"digits {shared} are in two splits ({found}). "
            "Each digit in one split, or split: by-image"
        )


def _file(folder: Path, name: str) -> Path | None:
    """The file of this name, packed or not."""
    return next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)


def _unpack(raw: Path, name: str, target: Path) -> None:
    file = _file(raw, name)
    if file is None:
        raise fsl.DataError(f"{raw / name}: not there any more. The file, packed or not")
    if file.suffix != ".gz":
        target.symlink_to(file.resolve())
        return
    if (found := md5_of(file)) != CHECKSUMS[name]:
        raise fsl.DataError(
            f"{file}: md5 {found}. {CHECKSUMS[name]}: delete the file and fetch it again"
        )
    target.write_bytes(gzip.decompress(file.read_bytes()))


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Mnist)

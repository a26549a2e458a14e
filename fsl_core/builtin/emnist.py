"""814,255 handwritten digits and letters."""

from __future__ import annotations

import gzip
import shutil
import string
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated, Literal

import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data.cache import data_root
from fsl_core.data.downloads import download, once
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.vision import torchvision, torchvision_dataset

FOLDERS = ("EMNIST/raw", "raw", "")
ARCHIVE = "gzip.zip"
MEGABYTES = 562
FILES = tuple(
    f"emnist-byclass-{part}-{what}-ubyte"
    for part in ("train", "test")
    for what in ("images-idx3", "labels-idx1")
)
CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
BY_SPLIT: dict[str, dict[fsl.Split, Sequence[int]]] = {
    "cross-domain": {
        "train": (),
        "validation": range(0, 62, 2),
        "test": range(1, 62, 2),
    },
    "by-class": {
        "train": range(0, 62, 2),
        "validation": range(1, 62, 4),
        "test": range(3, 62, 4),
    },
}


class Emnist(fsl.PooledEpisodes):
    """Handwritten digits and letters, (1, 28, 28), ink 1 on background 0, upright.

    Classes: `0` .. `9`, `A` .. `Z`, `a` .. `z`, numbered in this order. Images of a class: those of
    the training file, then those of the test file. The files hold them mirrored at the diagonal.
    Source: Cohen et al. 2017, arXiv:1702.05373, its split "By_Class".

    split cross-domain: nothing to train on, the 31 classes of even number to validate, those of odd
        number to test: for a learner that was trained on Omniglot, as Patacchiola et al. 2020,
        arXiv:1910.05199, and HyperMAML do. Differs: they read pictures of three equal channels,
        enlarged to 32x32 and cut to 28x28.
    split by-class: even numbers to train, the others in turn to validate and to test; this
        project's.
    """

    name = "emnist"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[int, Field(ge=1, description="images to predict per class")] = 15,
        root: Annotated[
            Path | None,
            Field(
                description="folder of EMNIST/raw, of its four files or of gzip.zip; default: "
                "FSL_DATA, else the cache"
            ),
        ] = None,
        split: Annotated[
            Literal["cross-domain", "by-class"],
            Field(description="classes of train / validation / test: 0/31/31 or 31/16/15"),
        ] = "cross-domain",
        download: Annotated[
            bool, Field(description="download gzip.zip (562 MB) if the files are not there")
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

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        numbers = BY_SPLIT[self.split][split]
        if not numbers:
            return fsl.LabelledPool.from_classes([])
        images, labels = self._images
        return fsl.LabelledPool.from_classes(
            (CLASSES[i], images[labels == i][:, None].mT) for i in numbers
        )

    @cached_property
    def _images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(814255, 28, 28) uint8 and (814255,) int64: the training file, then the test file."""
        raw = self.fetch()
        with TemporaryDirectory() as folder:
            unpacked = Path(folder) / FOLDERS[0]
            unpacked.mkdir(parents=True)
            try:
                for name in FILES:
                    _unpack(raw, name, unpacked / name)
                parts = [
                    torchvision_dataset("EMNIST", Path(folder), split="byclass", train=train)
                    for train in (True, False)
                ]
            except (OSError, EOFError, zlib.error, zipfile.BadZipFile, fsl.DataError) as error:
                raise fsl.DataError(
                    f"{raw}: not the characters of EMNIST ({error.__cause__ or error}). "
                    "Delete its files and fetch them again"
                ) from error
        return torch.cat([part.data for part in parts]), torch.cat([part.targets for part in parts])

    def fetch(self) -> Path:
        """The folder of the four files, packed or not, or of their archive; downloaded if need be.

        Raises DataError if they are absent and cannot be downloaded.
        """
        wanted = f"{ARCHIVE} of EMNIST, or what it holds, {', '.join(f'{n}.gz' for n in FILES)}"
        try:
            root = data_root(self.root)
        except fsl.DataError as error:
            raise fsl.DataError(f"episodes {self.name!r}: {error}, with {wanted}") from error
        for folder in (root / name for name in FOLDERS):
            if _complete(folder):
                return folder
        reason = "download: false"
        if self.download:
            try:
                self._download()
                return root / FOLDERS[0]
            except fsl.DataError as error:
                reason = str(error)
        raise fsl.DataError(
            f"episodes {self.name!r}: not all four files of EMNIST in {root / FOLDERS[0]} "
            f"or {root} ({reason}). {wanted}, in a folder named by `-s episodes.root=DIR` "
            "or FSL_DATA"
        )

    @once
    def _download(self) -> None:
        published = torchvision().datasets.EMNIST
        target = data_root(self.root) / FOLDERS[0] / ARCHIVE
        download([published.url], target, published.md5, megabytes=MEGABYTES)


def _complete(folder: Path) -> bool:
    files = all((folder / f"{n}.gz").is_file() or (folder / n).is_file() for n in FILES)
    return files or (folder / ARCHIVE).is_file()


def _unpack(raw: Path, name: str, target: Path) -> None:
    """Put one of the files in place, from itself, its packed form or the archive of all."""
    if (raw / name).is_file():
        target.symlink_to((raw / name).resolve())
        return
    packed: IO[bytes]
    with ExitStack() as opened:
        if (raw / f"{name}.gz").is_file():
            packed = opened.enter_context((raw / f"{name}.gz").open("rb"))
        else:
            archive = opened.enter_context(zipfile.ZipFile(raw / ARCHIVE))
            member = f"gzip/{name}.gz"
            if member not in archive.namelist():
                raise fsl.DataError(f"{raw / ARCHIVE} has no {member}")
            packed = opened.enter_context(archive.open(member))
        shutil.copyfileobj(
            opened.enter_context(gzip.GzipFile(fileobj=packed)),
            opened.enter_context(target.open("wb")),
        )


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Emnist)

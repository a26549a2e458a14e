"""What learn2learn's data sets have in common.

They are found, read by learn2learn's own class, and decoded once into a pool.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

import fsl_core as fsl
from fsl_core.data import (
    Augmentation,
    EpisodesPerDraw,
    ItemsPerClass,
    Sampling,
    Shots,
    Ways,
    content_key,
    data_root,
    decode_image,
    reported,
    to_pixels,
)
from fsl_learn2learn.library import learn2learn
from fsl_learn2learn.pickles import refuse_code

NQuery = Annotated[int, Field(ge=1, description="images to predict per class")]
Root = Annotated[
    Path | None,
    Field(
        description="folder in which learn2learn keeps its data; default: FSL_DATA, else the cache"
    ),
]
ImageSize = Annotated[
    int | None,
    Field(ge=8, le=2048, description="height and width; null: those of the data set, or 84"),
]
Augment = Annotated[
    Augmentation,
    Field(description="training images: as they are, mirrored, cropped and mirrored at random"),
]
Download = Annotated[bool, Field(description="let learn2learn download what is not there")]


Picture = Image.Image | np.ndarray | Path
"""A picture, its (height, width, 3) or (height, width) uint8, or its file."""


class L2lEpisodes(fsl.PooledEpisodes):
    """A data set of learn2learn, its classes divided as learn2learn divides them.

    Values lie in 0 .. 1 and are not normalised further. Files are looked for where learn2learn
    keeps them under root, and are not changed. Images are decoded once and kept under the names,
    sizes and times of the files. Those of a class are sorted by the md5 of their pixels, so that
    episode i is the same on every machine. Pictures of other sizes: the short side is resized, then
    the centre square taken.

    A subclass names the class of learn2learn, the paths it reads for a split, and its classes.
    """

    dataset: ClassVar[str]
    side: ClassVar[int] = 84
    channels: ClassVar[Literal["rgb", "gray"]] = "rgb"
    size: ClassVar[str]  # of the download
    variant: object = None  # what else the pixels depend on

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: NQuery = 15,
        root: Root = None,
        image_size: ImageSize = None,
        augment: Augment = "none",
        download: Download = False,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        learn2learn()
        side = image_size or self.side
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=({"rgb": 3, "gray": 1}[self.channels], side, side),
            augment=augment,
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.download = root, download
        self._failed: fsl.DataError | None = None

    def needs(self, split: fsl.Split) -> list[str]:
        """Paths under root that are read for a split."""
        raise NotImplementedError(
            f"{type(self).__name__}.needs: not written. The paths learn2learn reads for a split"
        )

    def labelled(self, folder: Path, split: fsl.Split) -> Iterable[tuple[str, Picture]]:
        """(class, picture), in any order. Default: learn2learn's data set."""
        data = self.open(folder, split)
        names = self.class_names(data, split)
        for i in range(len(data)):
            picture, label = data[i]
            yield names[int(label)], picture

    def open(self, folder: Path, split: fsl.Split) -> Any:
        """learn2learn's data set."""
        return getattr(learn2learn().vision.datasets, self.dataset)(str(folder), mode=split)

    def class_names(self, data: Any, split: fsl.Split) -> Sequence[str] | dict[int, str]:
        """The name of each label of learn2learn's data set."""
        raise NotImplementedError(
            f"{type(self).__name__}.class_names: not written. A name for each label"
        )

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        root = self.find(split)
        files = [file for path in self.needs(split) for file in _files(root / path)]
        states = [
            f"{file.relative_to(root)} {file.stat().st_size} {file.stat().st_mtime_ns}"
            for file in files
        ]
        what = ("learn2learn", self.name, str(self.variant), split)
        key = content_key(*what, self.task.input_shape, *states)
        return fsl.LabelledPool.cached(key, lambda: self._decode(root, split))

    def find(self, split: fsl.Split) -> Path:
        """The folder that holds what a split needs, downloaded if that is asked for.

        Raises DataError if there is no such folder.
        """
        try:
            root = data_root(self.root)
        except fsl.DataError as error:
            raise fsl.DataError(
                f"episodes {self.name!r}: {error}, with {_listed(self.needs(split))}"
            ) from error
        reason = "download: false"
        if self._missing(root, split) and self.download:
            if self._failed:  # told of one split; not tried and told of again for the next
                raise self._failed
            reason = self._download(root, split)
        if missing := self._missing(root, split):
            where = f"episodes {self.name!r}: no {_listed(missing)} in {root} ({reason})"
            remedy = f"`-s episodes.download=true`, {self.size}"
            if self.download:
                remedy = "a network connection"
            self._failed = fsl.DataError(
                f"{where}. What learn2learn keeps there, in a folder named by "
                f"`-s episodes.root=DIR` or FSL_DATA; or {remedy}"
            )
            raise self._failed
        return root

    def _missing(self, root: Path, split: fsl.Split) -> list[str]:
        return [path for path in self.needs(split) if not (root / path).exists()]

    def _download(self, root: Path, split: fsl.Split) -> str:
        """Have learn2learn download its data; what went wrong, or nothing."""
        self._refuse_code(root, split)  # of what is there already
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _on_stderr():
                self.fetch(root, split)
        except Exception as error:  # requests, zip and tar files and pickles raise nearly anything
            return f"download failed: {' '.join(str(error).split()) or type(error).__name__}"
        return "downloaded, but incomplete"

    def fetch(self, root: Path, split: fsl.Split) -> None:
        getattr(learn2learn().vision.datasets, self.dataset)(str(root), mode=split, download=True)

    def _decode(self, root: Path, split: fsl.Split) -> fsl.LabelledPool:
        images: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._refuse_code(root, split)
        try:
            with (
                _linked(root, self.needs(split)) as folder,
                _on_stderr(),
                reported("decoding pictures", None) as advance,
            ):
                for name, picture in self.labelled(folder, split):
                    images[name].append(self.pixels(picture))
                    advance(1)
        except fsl.DataError:
            raise
        except Exception as error:  # of a damaged file, from pickle, PIL or learn2learn
            found = " ".join(str(error).split()) or type(error).__name__
            raise fsl.DataError(
                f"episodes {self.name!r}: {_listed(self.needs(split))} in {root}: learn2learn "
                f"cannot read it ({found}). The files as published; delete them and fetch them "
                "again"
            ) from error
        return fsl.LabelledPool.from_classes(
            (name, torch.stack(self.in_order(images.pop(name)))) for name in sorted(images)
        )

    def _refuse_code(self, root: Path, split: fsl.Split) -> None:
        files = (file for path in self.needs(split) for file in _files(root / path))
        refuse_code(files, f"episodes {self.name!r}")

    def pixels(self, picture: Picture) -> torch.Tensor:
        """(channels, image_size, image_size) uint8."""
        side = self.task.input_shape[-1]
        if isinstance(picture, Path):
            return decode_image(picture, side, self.channels)
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(np.asarray(picture))
        return to_pixels(picture, side, self.channels)

    def in_order(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """The pictures of a class in an order that depends on no file system."""

        def digest(image: torch.Tensor) -> bytes:
            return hashlib.md5(image.numpy().tobytes(), usedforsecurity=False).digest()

        return sorted(images, key=digest)


def splits_of(module: str) -> dict[str, list]:
    """The class lists that a module of learn2learn's data sets holds."""
    learn2learn()
    return import_module(f"learn2learn.vision.datasets.{module}").SPLITS


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


@contextlib.contextmanager
def _linked(root: Path, needs: Iterable[str]) -> Iterator[Path]:
    """A folder for learn2learn to write its indices into, with links to what it reads."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in needs:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((root / path).resolve())
        yield folder


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """What learn2learn prints goes to the standard error stream, and its warnings nowhere."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
        yield

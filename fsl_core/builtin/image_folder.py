"""Your own pictures: one folder for each class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.cache import content_key
from fsl_core.data.folders import class_images, subfolders
from fsl_core.data.levels import ValueRange, check_range
from fsl_core.data.vision import decode_image, decode_images, joined

SPLIT_FOLDERS: dict[fsl.Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}


class ImageFolder(fsl.PooledEpisodes):
    """Images in `root/<class>/`, or in `root/train/<class>/`, `root/validation/<class>/` (or val) and `root/test/<class>/`.

    Without split folders the classes are shared out: shuffled by a hash of their name and split_seed, then cut in these
    fractions. The short side of a picture is resized to image_size and the centre square taken.
    Folders and files whose name starts with a dot, and files without the ending of an image, are
    passed over.

    value_range [low, high]: the numbers in every picture are clipped to it and mapped to 0 .. 255.
    Without it, 8 bits stay as they are and 16 bits keep their upper 8; float, signed and 12-bit
    pictures are refused with the range that fits them.
    """

    name = "image-folder"

    def __init__(
        self,
        root: Annotated[
            Path,
            Field(
                description="folder with one folder of images for each class, or with train, validation, test"
            ),
        ],
        n_way: Annotated[int, Field(ge=2, description="classes per episode")] = 5,
        n_shot: Annotated[int, Field(ge=1, description="labelled images per class")] = 1,
        n_query: Annotated[int, Field(ge=1, description="images to predict per class")] = 15,
        image_size: Annotated[
            int, Field(ge=8, le=2048, description="height and width in pixels")
        ] = 84,
        channels: Annotated[
            Literal["rgb", "gray"], Field(description="3 colour channels, or 1")
        ] = "rgb",
        fractions: Annotated[
            tuple[float, float, float],
            Field(
                description="shares of the classes for train, validation, test; not used where these are folders"
            ),
        ] = (0.6, 0.2, 0.2),
        split_seed: Annotated[
            int, Field(description="another number, other classes in each split")
        ] = 0,
        value_range: Annotated[
            ValueRange | None,
            Field(
                description="numbers that become black and white; null: pictures of 8 or 16 bits"
            ),
        ] = None,
    ):
        check_range(value_range)
        if min(fractions) < 0 or sum(fractions) <= 0:
            raise ValueError(f"fractions: {list(fractions)}. Three numbers >= 0, not all of them 0")
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=({"rgb": 3, "gray": 1}[channels], image_size, image_size),
        )
        self.root, self.fractions, self.split_seed = Path(root).expanduser(), fractions, split_seed
        self.channels: Literal["rgb", "gray"] = channels
        self.value_range = value_range and (float(value_range[0]), float(value_range[1]))

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        classes = {folder.name: class_images(folder) for folder in self.class_folders(split)}
        files = [file for of_class in classes.values() for file in of_class]

        def read() -> fsl.LabelledPool:
            images, faults = decode_images(files, self.decode, self.task.input_shape)
            if faults:
                raise joined(faults)
            return fsl.LabelledPool(images, tuple(classes), tuple(map(len, classes.values())))

        how = (self.task.input_shape[-1], self.channels, self.value_range)
        contents = [part for name, files in classes.items() for part in (name, len(files), *files)]
        key = content_key("image-folder", *how, *contents, under=self.root)
        return fsl.LabelledPool.cached(key, read)

    def decode(self, file: Path) -> Tensor:
        return decode_image(file, self.task.input_shape[-1], self.channels, self.value_range)

    def class_folders(self, split: fsl.Split) -> list[Path]:
        """The folders of the classes of a split, sorted by name. Raises DataError if there is no root or no class."""
        where = f"episodes {self.name!r}: root {self.root}"
        if not self.root.is_dir():
            state = "is no folder" if self.root.exists() else "does not exist"
            raise fsl.DataError(
                f"{where} {state}. A folder with one folder of images for each class"
            )
        folders = subfolders(self.root)
        by_split = {
            f.name: subfolders(f)
            for f in folders
            if f.name in ("train", "validation", "val", "test")
        }
        by_split = {name: classes for name, classes in by_split.items() if classes}
        if by_split:
            for name in SPLIT_FOLDERS[split]:
                if name in by_split:
                    return by_split[name]
            expected = " or ".join(SPLIT_FOLDERS[split])
            raise fsl.DataError(
                f"{where} has no classes in a folder {expected}, only in {', '.join(by_split)}. A folder of each split"
            )
        if not folders:
            raise fsl.DataError(
                f"{where} has no class folders. One folder of images for each class"
            )
        return sorted(self._share(folders)[split])

    def _share(self, folders: list[Path]) -> dict[fsl.Split, list[Path]]:
        shuffled = sorted(
            folders, key=lambda f: hashlib.blake2b(f"{self.split_seed}/{f.name}".encode()).digest()
        )
        train, validation, _ = self.fractions
        first, second = (
            round(len(folders) * share / sum(self.fractions))
            for share in (train, train + validation)
        )
        return {
            "train": shuffled[:first],
            "validation": shuffled[first:second],
            "test": shuffled[second:],
        }


@fsl.hookimpl
def fsl_register_episodes(register):
    register(ImageFolder)

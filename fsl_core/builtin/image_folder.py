"""Your pictures: one folder for each class, or lists of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import getfile
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import PIL
import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data import folders, formats, levels, vision
from fsl_core.data.cache import cached_tensors, content_key
from fsl_core.data.folders import PassedOver
from fsl_core.data.levels import ValueRange, check_range
from fsl_core.data.listings import Listing, find_classes, list_folders, read_list
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.sharing import (
    SPLIT_NAMES,
    Fractions,
    SplitBy,
    SplitSeed,
    check_fractions,
    refuse_small_shares,
    split_by_name,
    split_of,
)
from fsl_core.data.vision import decode_image, decode_images, refuse_faults
from fsl_core.text import printable

BY_HAND = "a folder for each split (train, validation, test) with the classes you choose"


class ImageFolder(fsl.PooledEpisodes):
    """Images in `root/<class>/`, or in a folder of classes for each split.

    The folders of splits are `root/train/<class>/`, `root/validation/<class>/` (or val) and
    `root/test/<class>/`. Or `splits` names a list for each split: .csv with the columns filename
    and label (mini-ImageNet's), or .json with class_names and class_roots (easyfsl's).

    Without either, each class is put in a split by a hash of its name and split_seed, so that it
    stays there when other classes come or go. Many classes are shared out in about these fractions,
    few classes less exactly. `split_by: items` shares out the pictures of every class instead:
    train and test then have the same classes.

    Pictures are read in subfolders too; the short side is resized to image_size and the centre
    square taken. Folders and files whose name starts with a dot or that an operating system makes
    (`__MACOSX`, `@eaDir`, `Thumbs.db`), and files without the ending of an image, are passed over;
    `fsl check --data` counts them. Names are compared in Unicode's composed form (NFC).

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
                description="folder with one folder of images for each class, or with train, "
                "validation, test"
            ),
        ],
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[int, Field(ge=1, description="images to predict per class")] = 15,
        image_size: Annotated[
            int, Field(ge=8, le=2048, description="height and width in pixels")
        ] = 84,
        channels: Annotated[
            Literal["rgb", "gray"], Field(description="3 colour channels, or 1")
        ] = "rgb",
        splits: Annotated[
            dict[fsl.Split, Path] | None,
            Field(description="a list of pictures for each split in use, .csv or .json, in root"),
        ] = None,
        depth: Annotated[
            int, Field(ge=1, le=8, description="folders below one another that make a class")
        ] = 1,
        min_images: Annotated[
            int, Field(ge=0, description="classes with fewer pictures are left out, and counted")
        ] = 0,
        split_by: SplitBy = "classes",
        fractions: Fractions = (0.6, 0.2, 0.2),
        split_seed: SplitSeed = 0,
        skip_unreadable: Annotated[
            bool, Field(description="leave out images that cannot be read, and say which")
        ] = False,
        value_range: Annotated[
            ValueRange | None,
            Field(
                description="numbers that become black and white; null: pictures of 8 or 16 bits"
            ),
        ] = None,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        check_range(value_range)
        check_fractions(fractions)
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=({"rgb": 3, "gray": 1}[channels], image_size, image_size),
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.depth, self.min_images = Path(root).expanduser(), depth, min_images
        self.splits = splits
        self.split_by, self.fractions, self.split_seed = split_by, fractions, split_seed
        self.channels: Literal["rgb", "gray"] = channels
        self.value_range = value_range and (float(value_range[0]), float(value_range[1]))
        self.skip_unreadable = skip_unreadable
        self._listings: dict[fsl.Split, Listing] = {}

    # How pictures become a pool.

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        listing = self._listing(split)
        if not self.skip_unreadable:
            folders.refuse_unreadable(folders.unreadable(listing.passed_over))
        listing.refuse_empty()
        how = (self.task.input_shape[-1], self.channels, self.value_range)
        contents: list[str | int | Path] = []
        for name, files in listing.files.items():
            contents += [name, len(files), *files]
        try:
            key = content_key("image-folder", *how, *contents, under=self.root)
        except fsl.DataError:  # it names the first file; reading them names all that are damaged
            self._read(listing.files)
            raise
        return fsl.LabelledPool.cached(key, lambda: self._read(listing.files))

    def _read(self, classes: Mapping[str, Sequence[Path]]) -> fsl.LabelledPool:
        files = list(chain(*classes.values()))
        images, faults = decode_images(files, self.decode, self.task.input_shape)
        fit = "Whole image files, or `skip_unreadable: true`, which leaves them out"
        refuse_faults(files, faults, fit)
        return fsl.LabelledPool(images, tuple(classes), tuple(map(len, classes.values())))

    def decode(self, file: Path) -> torch.Tensor:
        return decode_image(file, self.task.input_shape[-1], self.channels, self.value_range)

    # Which pictures there are.

    def inspect(self, split: fsl.Split, digest: bool = True) -> fsl.SplitContents:
        pool = self.pool(split) if digest else None
        listing = self._listing(split)
        classes = {name: len(files) for name, files in listing.files.items()}
        return fsl.SplitContents(
            classes, pool.digest if pool else None, listing.files, listing.passed_over
        )

    def check_splits(self, wanted: Mapping[fsl.Split, fsl.TaskShape]) -> None:
        self._refuse_small_shares(wanted)
        super().check_splits(wanted)

    def check(self, split: fsl.Split, task: fsl.TaskShape | None = None) -> None:
        task = task or self.task
        if len(self.pool(split).classes) < self.ways_needed(task):
            self._refuse_small_shares({"train": self.task, split: task})
        super().check(split, task)

    def class_names(self, split: fsl.Split) -> list[str]:
        """The names of the classes of a split, sorted.

        Raises DataError if there is no root or no class.
        """
        return list(self._listing(split).classes)

    def _listing(self, split: fsl.Split) -> Listing:
        if split not in self._listings:
            found = self._find(split)
            self._listings[split] = self._readable(found) if self.skip_unreadable else found
        return self._listings[split]

    def _find(self, split: fsl.Split) -> Listing:
        if self.splits is not None:
            return read_list(self._list_of(split), self.root).at_least(self.min_images)
        if self._split_folders is not None:
            return self._of_folder(split).at_least(self.min_images)
        found = self._everything
        if self.split_by == "classes":
            return found.of_classes(lambda name: self._share(name) == split)
        found.refuse_empty()
        place = {name: listed.source for name, listed in found.classes.items()}
        return found.of_files(
            lambda name, file: self._share(f"{name}/{file.relative_to(place[name])}") == split
        )

    def _share(self, name: str) -> fsl.Split:
        return split_by_name(name, self.fractions, self.split_seed)

    def _readable(self, listing: Listing) -> Listing:
        """The listing without files that cannot be decoded; kept, so that each is tried once."""

        files = listing.all_files

        def try_all() -> dict[str, torch.Tensor]:
            _, faults = decode_images(files, self.decode, self.task.input_shape)
            reasons = [""] * len(files)
            for i, error in faults.items():
                reasons[i] = folders.as_unreadable(files[i], error).detail
            return {"reasons": torch.tensor(list(json.dumps(reasons).encode()), dtype=torch.uint8)}

        def unpack(kept: Mapping[str, torch.Tensor]) -> dict[Path, str]:
            reasons = json.loads(bytes(kept["reasons"].numpy()))
            return dict(zip(files, map(str, reasons), strict=True))

        # What can be read depends on this code too.
        reader = content_key(*(Path(getfile(module)) for module in (vision, formats, levels)))
        how = PIL.__version__, formats.max_pixels(), self.task.input_shape, self.value_range
        key = content_key(
            "image-folder unreadable", reader, *how, *files, under=self.root, tolerant=True
        )
        kept, _ = cached_tensors(key, try_all, check=unpack)
        return listing.without({file: why for file, why in unpack(kept).items() if why})

    def _list_of(self, split: fsl.Split) -> Path:
        """The list of a split: in root, or else from the working folder."""
        lists = self.splits or {}
        if split not in lists:
            raise fsl.DataError(
                f"episodes {self.name!r}: splits names no list of {split}, only "
                f"{', '.join(lists) or 'none'}. A list of each split in use"
            )
        named = Path(lists[split]).expanduser()
        inside = self.root / named
        return inside if inside.is_file() else named

    def _of_folder(self, split: fsl.Split) -> Listing:
        by_split = self._split_folders or {}
        if split not in by_split:
            kept = ", ".join(
                f"{printable(folder.name)} ({len(listing.classes)} classes)"
                for folder, listing in by_split.values()
            )
            wanted = ", ".join(SPLIT_NAMES[split])
            raise fsl.DataError(
                f"{self._where}: no folder with the classes of {split}, only {kept}. "
                f"A folder of each split in use; for this one it may have the name {wanted}"
            )
        _, listing = by_split[split]
        used = {folder for folder, _ in by_split.values()}
        top = folders.find_class_folders(self.root, once=False)
        beside = [PassedOver(path, folders.BESIDE) for path in top.paths if path not in used]
        return Listing(listing.classes, [*top.passed_over, *beside, *listing.beside])

    @cached_property
    def _split_folders(self) -> dict[fsl.Split, tuple[Path, Listing]] | None:
        """The folder and classes of each split that has one; None if classes are shared out."""
        fit = "A folder with one folder of images for each class"
        folders.require_folder(self.root, self._where, fit)
        found: dict[fsl.Split, tuple[Path, Listing]] = {}
        for folder in folders.find_class_folders(self.root, once=False).paths:
            split = split_of(folder.name)
            if split is None:
                continue
            classes, beside = find_classes(folder, self.depth)
            if not classes:
                continue
            if split in found:
                names = f"{found[split][0].name!r} and {folder.name!r}"
                raise fsl.DataError(
                    f"{self._where}: folders {names} both mean {split}. One folder for each split"
                )
            found[split] = folder, list_folders(classes, beside)
        return found or None

    @cached_property
    def _everything(self) -> Listing:
        """The classes that are shared out to the splits."""
        classes, beside = find_classes(self.root, self.depth)
        if not classes:
            deep = f" {self.depth} folders deep" if self.depth > 1 else ""
            raise fsl.DataError(
                f"{self._where} has no class folders{deep}. One folder of images for each class"
            )
        return list_folders(classes, beside).at_least(self.min_images)

    def _refuse_small_shares(self, wanted: Mapping[fsl.Split, fsl.TaskShape]) -> None:
        """Raise DataError if a split gets fewer than n_way of the classes shared out."""
        if self.splits is not None or self.split_by == "items" or self._split_folders is not None:
            return
        names = list(self._everything.classes)
        needed = {split: self.ways_needed(task) for split, task in wanted.items()}
        how = self.fractions, self.split_seed
        refuse_small_shares(self._where, names, *how, needed, BY_HAND)

    @property
    def _where(self) -> str:
        return f"episodes {self.name!r}: root {printable(self.root)}"


@fsl.hookimpl
def fsl_register_episodes(register):
    register(ImageFolder)

"""Your pictures: one folder for each class."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import getfile
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, get_args

import PIL
import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data import folders, formats, levels, vision
from fsl_core.data.cache import cached_tensors, content_key
from fsl_core.data.folders import PassedOver
from fsl_core.data.levels import ValueRange, check_range
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.vision import decode_image, decode_images, refuse_faults
from fsl_core.text import printable

SPLIT_FOLDERS: dict[fsl.Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of split folders, in small or capital letters, also after `meta`, `meta-` or `meta_`."""

SHARED_OUT_BY = "fsl-core classes 16351"
"""Hashed with the names of classes. Another text would put most classes in another split.

The number is one with which c00 .. c14, the classes of our tests, are shared out as their
fractions say.
"""

SEEDS = 10_000
"""Values of split_seed that are tried when a split has too few classes."""


class ImageFolder(fsl.PooledEpisodes):
    """Images in `root/<class>/`, or in a folder of classes for each split.

    The folders of splits are `root/train/<class>/`, `root/validation/<class>/` (or val) and
    `root/test/<class>/`.

    Without split folders each class is put in a split by a hash of its name and split_seed, so that
    it stays there when other classes come or go. Many classes are shared out in about these
    fractions, few classes less exactly.

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
        fractions: Annotated[
            tuple[float, float, float],
            Field(
                description="shares of the classes for train, validation, test; not used if these "
                "are folders"
            ),
        ] = (0.6, 0.2, 0.2),
        split_seed: Annotated[
            int, Field(description="another number, other classes in each split")
        ] = 0,
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
        if min(fractions) < 0 or sum(fractions) <= 0:
            raise ValueError(f"fractions: {list(fractions)}. Three numbers >= 0, not all of them 0")
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=({"rgb": 3, "gray": 1}[channels], image_size, image_size),
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.fractions, self.split_seed = Path(root).expanduser(), fractions, split_seed
        self.channels: Literal["rgb", "gray"] = channels
        self.value_range = value_range and (float(value_range[0]), float(value_range[1]))
        self.skip_unreadable = skip_unreadable
        self._listings: dict[fsl.Split, _Listing] = {}

    # How pictures become a pool.

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        listing = self._listing(split)
        if not self.skip_unreadable:
            folders.refuse_unreadable(folders.unreadable(listing.passed_over))
        listing.refuse_empty()
        how = (self.task.input_shape[-1], self.channels, self.value_range)
        contents: list[str | int | Path] = []
        for name, files in listing.classes.items():
            contents += [name, len(files), *files]
        try:
            key = content_key("image-folder", *how, *contents, under=self.root)
        except fsl.DataError:  # it names the first file; reading them names all that are damaged
            self._read(listing.classes)
            raise
        return fsl.LabelledPool.cached(key, lambda: self._read(listing.classes))

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
        classes = {name: len(files) for name, files in listing.classes.items()}
        return fsl.SplitContents(
            classes, pool.digest if pool else None, listing.classes, listing.passed_over
        )

    def check_splits(self, wanted: Mapping[fsl.Split, fsl.TaskShape]) -> None:
        self._refuse_small_shares(wanted)
        super().check_splits(wanted)

    def check(self, split: fsl.Split, task: fsl.TaskShape | None = None) -> None:
        task = task or self.task
        if len(self.pool(split).classes) < task.n_way:
            self._refuse_small_shares({"train": self.task, split: task})
        super().check(split, task)

    def class_folders(self, split: fsl.Split) -> list[Path]:
        """The folders of the classes of a split, sorted by name.

        Raises DataError if there is no root or no class.
        """
        return self._class_folders(split).paths

    def _listing(self, split: fsl.Split) -> _Listing:
        if split not in self._listings:
            found = self._class_folders(split)
            listing = _list(found.paths, found.passed_over)
            self._listings[split] = self._readable(listing) if self.skip_unreadable else listing
        return self._listings[split]

    def _readable(self, listing: _Listing) -> _Listing:
        """The listing without files that cannot be decoded; kept, so that each is tried once."""

        files = listing.files

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

    def _class_folders(self, split: fsl.Split) -> folders.Found:
        by_split = self._split_folders()
        if by_split is None:
            found = self._all_classes()
            return replace(found, paths=self._share(found.paths)[split])
        if split not in by_split:
            kept = ", ".join(
                f"{printable(folder.name)} ({len(classes.paths)} classes)"
                for folder, classes in by_split.values()
            )
            wanted = ", ".join(SPLIT_FOLDERS[split])
            raise fsl.DataError(
                f"{self._where}: no folder with the classes of {split}, only {kept}. "
                f"A folder of each split in use; for this one it may have the name {wanted}"
            )
        _, classes = by_split[split]
        used = {folder for folder, _ in by_split.values()}
        top = folders.find_class_folders(self.root, once=False)
        beside = [PassedOver(path, folders.BESIDE) for path in top.paths if path not in used]
        return replace(classes, passed_over=[*top.passed_over, *beside, *classes.passed_over])

    def _split_folders(self) -> dict[fsl.Split, tuple[Path, folders.Found]] | None:
        """The folder and classes of each split that has one; None if classes are shared out."""
        fit = "A folder with one folder of images for each class"
        folders.require_folder(self.root, self._where, fit)
        found: dict[fsl.Split, tuple[Path, folders.Found]] = {}
        for folder in folders.find_class_folders(self.root, once=False).paths:
            split = split_of(folder.name)
            if split is None:
                continue
            classes = folders.find_class_folders(folder)
            if not classes.paths:
                continue
            if split in found:
                names = f"{found[split][0].name!r} and {folder.name!r}"
                raise fsl.DataError(
                    f"{self._where}: folders {names} both mean {split}. One folder for each split"
                )
            found[split] = folder, classes
        return found or None

    def _all_classes(self) -> folders.Found:
        found = folders.find_class_folders(self.root)
        if not found.paths:
            raise fsl.DataError(
                f"{self._where} has no class folders. One folder of images for each class"
            )
        return found

    def _share(self, classes: Sequence[Path]) -> dict[fsl.Split, list[Path]]:
        names = [split_by_name(f.name, self.fractions, self.split_seed) for f in classes]
        return {
            split: [folder for folder, own in zip(classes, names, strict=True) if own == split]
            for split in get_args(fsl.Split)
        }

    def _refuse_small_shares(self, wanted: Mapping[fsl.Split, fsl.TaskShape]) -> None:
        """Raise DataError if a split gets fewer than n_way of the classes shared out."""
        if self._split_folders() is not None:
            return
        classes = self._all_classes().paths
        shared = {split: len(found) for split, found in self._share(classes).items()}
        needed = {split: task.n_way for split, task in wanted.items()}
        few = [split for split, n in needed.items() if shared[split] < n]
        if few:
            given = ", ".join(f"{split} {n}" for split, n in shared.items())
            needs = ", ".join(f"{split} at least {needed[split]}" for split in few)
            raise fsl.DataError(
                f"{self._where}: fractions {list(self.fractions)} and split_seed {self.split_seed} "
                f"share out its {len(classes)} classes as {given}; n_way asks for {needs}. "
                f"{self._other_shares([f.name for f in classes], needed)}"
            )

    def _other_shares(self, names: Sequence[str], needed: Mapping[fsl.Split, int]) -> str:
        by_hand = "a folder for each split (train, validation, test) with the classes you choose"
        if len(names) < sum(needed.values()):
            return f"At least {sum(needed.values())} classes, or fewer ways"
        shares = dict(zip(get_args(fsl.Split), self.fractions, strict=True))
        if none := [split for split in needed if not shares[split]]:
            return f"A fraction above 0 for {' and '.join(none)}, or {by_hand}"
        for seed in range(SEEDS):
            own = [split_by_name(name, self.fractions, seed) for name in names]
            if all(own.count(split) >= n for split, n in needed.items()):
                shared = ", ".join(f"{split} {own.count(split)}" for split in get_args(fsl.Split))
                return f"`split_seed: {seed}` gives {shared}; or {by_hand}"
        return f"No split_seed below {SEEDS} does: other fractions, more classes, or {by_hand}"

    @property
    def _where(self) -> str:
        return f"episodes {self.name!r}: root {printable(self.root)}"


@dataclass(frozen=True)
class _Listing:
    """The files of each class of a split, and what lies beside them.

    sources: the folder of each class, by its name in composed form.
    """

    classes: dict[str, list[Path]]
    sources: dict[str, Path]
    passed_over: list[PassedOver]

    @property
    def files(self) -> list[Path]:
        return list(chain(*self.classes.values()))

    def without(self, unreadable: Mapping[Path, str]) -> _Listing:
        classes = {
            name: [file for file in files if file not in unreadable]
            for name, files in self.classes.items()
        }
        left_out = [PassedOver(path, folders.UNREADABLE, why) for path, why in unreadable.items()]
        return replace(self, classes=classes, passed_over=[*self.passed_over, *left_out])

    def refuse_empty(self) -> None:
        """Raise one DataError with every class that has no images."""
        empty = [
            folders.no_pictures(self.sources[name], self._of_class(name))
            for name, files in self.classes.items()
            if not files
        ]
        if empty:
            raise fsl.DataError("\n".join(empty))

    def _of_class(self, name: str) -> list[PassedOver]:
        return [item for item in self.passed_over if item.path.is_relative_to(self.sources[name])]


def _list(class_folders: Sequence[Path], beside: Sequence[PassedOver]) -> _Listing:
    found = {folder: folders.find_pictures(folder) for folder in class_folders}
    return _Listing(
        {folders.nfc(folder.name): pictures.paths for folder, pictures in found.items()},
        {folders.nfc(folder.name): folder for folder in found},
        [*beside, *chain(*(pictures.passed_over for pictures in found.values()))],
    )


def split_of(name: str) -> fsl.Split | None:
    """The split that a folder of this name holds the classes of, if any."""
    word = re.sub(r"^meta[-_ ]?", "", folders.nfc(name).casefold())
    return next((split for split, names in SPLIT_FOLDERS.items() if word in names), None)


def split_by_name(name: str, fractions: Sequence[float], seed: int) -> fsl.Split:
    """The split of a class: a function of its name, the fractions and the seed alone.

    fractions: of train, validation and test, of any sum; a split of fraction 0 gets no class.
    """
    text = folders.name_bytes(f"{SHARED_OUT_BY}/{seed}/{folders.nfc(name)}")
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    u = (bits >> 11) * 2.0**-53  # uniform in [0, 1)
    train, validation, _ = fractions
    if u < train / sum(fractions):
        return "train"
    return "validation" if u < (train + validation) / sum(fractions) else "test"


@fsl.hookimpl
def fsl_register_episodes(register):
    register(ImageFolder)

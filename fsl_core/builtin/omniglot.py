"""1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

import fsl_core as fsl
from fsl_core.data import omniglot as shared
from fsl_core.data.cache import content_key, data_root
from fsl_core.data.downloads import download, md5_of, once
from fsl_core.data.folders import image_files
from fsl_core.data.formats import decoding, identify
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.vision import torchvision
from fsl_core.data.work import reported

SOURCE = "https://github.com/brendenlake/omniglot/tree/master/python"


class Omniglot(fsl.PooledEpisodes):
    """Handwritten characters, (1, image_size, image_size), ink 1 on background 0.

    Classes: `Alphabet/character01/rot090` and so on. Images are resized from 105 x 105 pixels by
    PIL's antialiased Lanczos filter, as learn2learn does; rotations are counterclockwise. With
    `rotations: per-episode` classes stand upright, and an episode turns each of its classes by a
    random right angle, as in MAML's code: it never holds one character twice.
    Source: Lake et al. 2015, Science 350:1332.

    resize nearest: every fourth or so of the pixels, black or white. MAML's code asks PIL for
        Lanczos, too, but of the files as they are, with one bit a pixel, and for these PIL takes
        the nearest pixel whatever it is asked for.

    split vinyals: Vinyals et al. 2016, arXiv:1606.04080, in the lists of Snell et al. 2017
        (arXiv:1703.05175): 1028 classes to train, 172 to validate, 423 to test.
    split learn2learn: all 1,623 classes shuffled by Python's generator with seed 42, the default of
        its examples, then 1100 / 100 / 423. Differs: learn2learn shuffles classes in the order in
        which the file system lists them, which no other machine repeats; here they are sorted. It
        draws the rotations inside an episode, in every split: `rotations: per-episode`.
    split finn: the sizes of MAML's code, 1100 / 100 / 423 of all classes, shuffled with its seed 1.
        Differs: there the file system's order is shuffled, by the generator of Python 2; so which
        classes are in a split is another draw.
    split no-latin: the 1,597 classes of all alphabets but Latin to train, its 26 to validate and to
        test: for learners that are judged on EMNIST, as by Patacchiola et al. 2020,
        arXiv:1910.05199, who turn no class.
    """

    name = "omniglot"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[
            int,
            Field(ge=1, description="images to predict per class; n_shot + n_query is at most 20"),
        ] = 15,
        root: Annotated[
            Path | None,
            Field(
                description="folder of omniglot-py or of its two zip files; default: FSL_DATA, "
                "else the cache"
            ),
        ] = None,
        split: Annotated[
            shared.ClassSplit,
            Field(
                description="classes of train / validation / test: 1028/172/423, or 1100/100/423 "
                "at random (learn2learn, finn), or 1597/26/26, the 26 of Latin (no-latin)"
            ),
        ] = "vinyals",
        image_size: Annotated[
            int, Field(ge=8, le=105, description="height and width in pixels")
        ] = 28,
        rotations: Annotated[
            Literal["train", "all", "none", "per-episode"],
            Field(
                description="splits in which turns by 90, 180, 270 degrees are classes of their "
                "own: training, all, none; per-episode: in all splits an episode turns each of its "
                "classes at random"
            ),
        ] = "train",
        resize: Annotated[
            Literal["lanczos", "nearest"],
            Field(description="how pictures are made smaller: antialiased, or by picking pixels"),
        ] = "lanczos",
        download: Annotated[
            bool, Field(description="download the two zip files (15 MB) if they are not there")
        ] = True,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=(1, image_size, image_size),
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.root, self.split, self.rotations, self.download = root, split, rotations, download
        self.resize: Literal["lanczos", "nearest"] = resize

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        pool = self._characters.select(shared.class_lists(self.split)[split])
        rotated = self.rotations == "all" or (self.rotations == "train" and split == "train")
        return shared.with_rotations(pool, (0, 90, 180, 270) if rotated else (0,))

    def episodes_of(
        self,
        split: fsl.Split,
        indices: Sequence[int],
        seed: int,
        shots: np.ndarray,
        n_query: int,
    ) -> fsl.Episode:
        episodes = super().episodes_of(split, indices, seed, shots, n_query)
        if self.rotations == "per-episode":
            return shared.turned_classes(episodes, split, seed)
        return episodes

    def fetch(self) -> list[Path]:
        """The background and the evaluation set, each a zip file or an unpacked folder.

        They are downloaded if need be. Raises DataError if one is absent and cannot be downloaded,
        or is not the official file.
        """
        try:
            root = data_root(self.root)
        except fsl.DataError as error:
            raise fsl.DataError(
                f"episodes {self.name!r}: {error}, with both zip files of {SOURCE}"
            ) from error
        parts, missing = _find_all(root)
        reason = "download: false"
        if missing and self.download:
            try:
                self._download()
                parts, missing = _find_all(root)
            except fsl.DataError as error:
                reason = str(error)
        if not missing:
            return parts
        raise fsl.DataError(
            f"episodes {self.name!r}: no {' and no '.join(missing)} "
            f"in {root} or {root / shared.FOLDER} ({reason}). "
            f"Both zip files of {SOURCE} in one of these folders, "
            "or their folder named by `-s episodes.root=DIR` or FSL_DATA"
        )

    @once
    def _download(self) -> None:
        """Fetch the zip files that are absent. They are read as they are, and never unpacked."""
        published, root = torchvision().datasets.Omniglot, data_root(self.root)
        for part, checksums in shared.CHECKSUMS.items():
            if _find(root, part) is None:
                url = f"{published.download_url_prefix}/{part}.zip"
                download([url], root / shared.FOLDER / f"{part}.zip", checksums[0], megabytes=10)

    @cached_property
    def _characters(self) -> fsl.LabelledPool:
        """All classes, sorted by name, upright."""
        parts, size = self.fetch(), self.task.input_shape[-1]
        of_parts = ([part] if part.is_file() else image_files(part) for part in parts)
        files = list(chain(*of_parts))
        key = content_key("omniglot", self.resize, size, *files, under=parts[0].parent)
        return fsl.LabelledPool.cached(
            key, lambda: _decode(parts, size, Image.Resampling[self.resize.upper()])
        )


def _find_all(root: Path) -> tuple[list[Path], list[str]]:
    """The parts that are there, and the names of the zip files that are missing."""
    found = {part: _find(root, part) for part in shared.CHECKSUMS}
    missing = [f"{part}.zip" for part, place in found.items() if place is None]
    return [place for place in found.values() if place is not None], missing


def _find(root: Path, part: str) -> Path | None:
    """The zip file of a part, its checksum compared, or else its unpacked folder."""
    for folder in (root, root / shared.FOLDER):
        archive = folder / f"{part}.zip"
        if archive.is_file():
            md5 = md5_of(archive)
            if md5 not in shared.CHECKSUMS[part]:
                raise fsl.DataError(
                    f"{archive}: md5 {md5}. {shared.CHECKSUMS[part][0]}: "
                    f"delete the file and fetch it again from {SOURCE}"
                )
            return archive
        if (folder / part).is_dir():
            return folder / part
    return None


def _decode(parts: Iterable[Path], size: int, resize: Image.Resampling) -> fsl.LabelledPool:
    images: dict[str, list[np.ndarray]] = {
        name: [] for name in sorted(chain(*shared.class_lists("vinyals").values()))
    }
    with reported("decoding pictures", shared.PER_CLASS * len(images)) as advance:
        for part in parts:
            for name, content in _read(part):
                if (character := name.rpartition("/")[0]) not in images:
                    raise fsl.DataError(
                        f"{part / name}: not a character of Omniglot. "
                        f"Only what the zip files of {SOURCE} hold"
                    )
                images[character].append(255 - _grey(part / name, content, size, resize))
                advance(1)
    for name, found in images.items():
        if len(found) != shared.PER_CLASS:
            where = " or ".join(map(str, parts))
            raise fsl.DataError(
                f"{where}: {len(found)} images of {name}. "
                f"{shared.PER_CLASS}: unpack the zip files of {SOURCE} again"
            )
    return fsl.LabelledPool.from_classes(
        (name, np.stack(found)[:, None]) for name, found in images.items()
    )


def _grey(where: Path, content: bytes, size: int, resize: Image.Resampling) -> np.ndarray:
    fit = f"Unpack the zip file of {SOURCE} again"
    with decoding(where, fit), identify(io.BytesIO(content)) as found:
        return np.asarray(found.convert("L").resize((size, size), resize))


def _drawings(part: Path) -> list[Path]:
    """Alphabet/character01/0709_01.png and so on, in an unpacked folder, sorted."""
    files = image_files(part)
    return [f for f in files if f.suffix == ".png" and len(f.relative_to(part).parts) == 3]


def _read(part: Path) -> Iterator[tuple[str, bytes]]:
    """(Alphabet/character01/0709_01.png, content), sorted, of a zip file or an unpacked folder."""
    if part.is_dir():
        for file in _drawings(part):
            yield file.relative_to(part).as_posix(), file.read_bytes()
        return
    with zipfile.ZipFile(part) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
            yield name.partition("/")[2], archive.read(name)


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Omniglot)

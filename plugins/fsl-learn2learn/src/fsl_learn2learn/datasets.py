"""The data sets of learn2learn, one class each."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

import fsl_core as fsl
from fsl_core.data import (
    EpisodesPerDraw,
    ItemsPerClass,
    Sampling,
    Shots,
    Ways,
    class_images,
    omniglot,
    torchvision,
)
from fsl_learn2learn.episodes import (
    Augment,
    Download,
    ImageSize,
    L2lEpisodes,
    NQuery,
    Picture,
    Root,
    splits_of,
)
from fsl_learn2learn.library import learn2learn

SHORT: dict[fsl.Split, str] = {"train": "train", "validation": "val", "test": "test"}


class MiniImagenet(L2lEpisodes):
    """mini-ImageNet: 100 classes of ImageNet, 600 pictures each, (3, 84, 84).

    64 classes to train, 16 to validate, 20 to test. Its files are pickles: one that names more than
    arrays and plain data is refused, because reading it would run code.
    Sources: Vinyals et al. 2016, arXiv:1606.04080; classes of Ravi and Larochelle 2017.
    """

    name, dataset, size = "mini-imagenet", "MiniImagenet", "3 GB"

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"mini-imagenet-cache-{split}.pkl"]

    def labelled(self, folder: Path, split: fsl.Split) -> Iterator[tuple[str, np.ndarray]]:
        data = self.open(folder, split)
        pictures = data.data["image_data"]  # (n, 84, 84, 3) uint8: what it holds as float32 besides
        for name, rows in data.data["class_dict"].items():
            for row in rows:
                yield name, pictures[row]


class TieredImagenet(L2lEpisodes):
    """tiered-ImageNet: 608 classes of ImageNet in 34 categories, none of them in two splits.

    351 / 97 / 160 classes, called by their numbers there; 779,165 pictures, (3, 84, 84). The
    training split takes 9.5 GB of memory. Its files are pickles: one that names more than arrays
    and plain data is refused.
    Source: Ren et al. 2018, arXiv:1803.00676.
    """

    name, dataset, size = "tiered-imagenet", "TieredImagenet", "12 GB"

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"tiered-imagenet/{SHORT[split]}_{part}.pkl" for part in ("images_png", "labels")]

    def class_names(self, data: Any, split: fsl.Split) -> dict[int, str]:
        return {int(label): f"{int(label):03d}" for label in set(data.labels)}


class CifarFs(L2lEpisodes):
    """CIFAR-FS as learn2learn reads it: 100 classes, 600 pictures each, (3, 32, 32).

    64 / 16 / 20 classes: those of core's `cifar-fs`, and its pictures in another order, from the
    folders of Bertinetto et al. 2019, arXiv:1805.08136.
    """

    name, dataset, size, side = "l2l-cifar-fs", "CIFARFS", "170 MB", 32

    def needs(self, split: fsl.Split) -> list[str]:
        return ["cifarfs/cifar100/data", "cifarfs/cifar100/splits"]

    def class_names(self, data: Any, split: fsl.Split) -> list[str]:
        return data.classes


class Fc100(L2lEpisodes):
    """FC100 as learn2learn reads it: CIFAR-100 in 60 / 20 / 20 classes, (3, 32, 32).

    Splits share no superclass. Classes are called by their numbers in CIFAR-100. Its files are
    pickles: one that names more than arrays and plain data is refused.
    Source: Oreshkin et al. 2018, arXiv:1805.10123.
    """

    name, dataset, size, side = "l2l-fc100", "FC100", "160 MB", 32

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"FC100_{SHORT[split]}.pickle"]

    def class_names(self, data: Any, split: fsl.Split) -> dict[int, str]:
        return {int(label): f"{int(label):03d}" for label in set(data.labels)}


class CubBirds(L2lEpisodes):
    """Caltech-UCSD Birds 200 (2011): species, 140 / 30 / 30 classes.

    Without the 43 pictures that ImageNet holds, too, unless they are asked for.
    crop: to the bird's bounding box.
    Sources: Wah et al. 2011; classes of Triantafillou et al. 2020, arXiv:1903.03096.
    """

    name, dataset, size = "l2l-cub", "CUBirds200", "1.1 GB"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: NQuery = 15,
        root: Root = None,
        image_size: ImageSize = None,
        augment: Augment = "none",
        crop: Annotated[bool, Field(description="to the bounding box")] = False,
        imagenet_duplicates: Annotated[
            bool, Field(description="with the pictures that ImageNet holds, too")
        ] = False,
        download: Download = False,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            root,
            image_size,
            augment,
            download,
            items_per_class,
            sampling,
            episodes_per_draw,
        )
        self.crop, self.imagenet_duplicates = crop, imagenet_duplicates
        self.variant = crop, imagenet_duplicates

    def needs(self, split: fsl.Split) -> list[str]:
        parts = [f"images/{name}" for name in splits_of("cu_birds200")[split]]
        if self.crop:
            parts += ["bounding_boxes.txt", "images.txt"]
        return [f"cubirds200/CUB_200_2011/{part}" for part in parts]

    def open(self, folder: Path, split: fsl.Split) -> Any:
        options = {
            "include_imagenet_duplicates": self.imagenet_duplicates,
            "bounding_box_crop": self.crop,
        }
        return learn2learn().vision.datasets.CUBirds200(str(folder), mode=split, **options)

    def class_names(self, data: Any, split: fsl.Split) -> list[str]:
        return splits_of("cu_birds200")[split]


class Aircraft(L2lEpisodes):
    """FGVC-Aircraft: variants of aeroplanes, 100 pictures each, 70 / 15 / 15 classes.

    The index labels.pkl, which learn2learn makes when it unpacks the archive, is a pickle: one that
    names more than arrays and plain data is refused.
    crop: to the aeroplane's bounding box, which cuts off the line that names the photographer.
    Sources: Maji et al. 2013, arXiv:1306.5151; classes of Triantafillou et al. 2020,
    arXiv:1903.03096.
    """

    name, dataset, size = "l2l-aircraft", "FGVCAircraft", "2.8 GB"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: NQuery = 15,
        root: Root = None,
        image_size: ImageSize = None,
        augment: Augment = "none",
        crop: Annotated[bool, Field(description="to the bounding box")] = False,
        download: Download = False,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            root,
            image_size,
            augment,
            download,
            items_per_class,
            sampling,
            episodes_per_draw,
        )
        self.crop = self.variant = crop

    def needs(self, split: fsl.Split) -> list[str]:
        parts = ("images", "labels.pkl", *(("images_box.txt",) if self.crop else ()))
        return [f"fgvc_aircraft/fgvc-aircraft-2013b/data/{part}" for part in parts]

    def open(self, folder: Path, split: fsl.Split) -> Any:
        return learn2learn().vision.datasets.FGVCAircraft(
            str(folder), mode=split, bounding_box_crop=self.crop
        )

    def class_names(self, data: Any, split: fsl.Split) -> list[str]:
        return splits_of("fgvc_aircraft")["valid" if split == "validation" else split]


class Textures(L2lEpisodes):
    """Describable Textures: 47 kinds, 120 pictures each, 33 / 7 / 7 classes.

    Read file by file by learn2learn's class lists: its own class holds all pictures at full size.
    Sources: Cimpoi et al. 2014, arXiv:1311.3618; classes of Triantafillou et al. 2020,
    arXiv:1903.03096.
    """

    name, dataset, size = "l2l-dtd", "DescribableTextures", "600 MB"

    def needs(self, split: fsl.Split) -> list[str]:
        names = splits_of("describable_textures")[split]
        return [f"describable_textures/dtd/images/{name}" for name in names]

    def labelled(self, folder: Path, split: fsl.Split) -> Iterator[tuple[str, Path]]:
        for path in self.needs(split):
            for file in class_images(folder / path):
                yield Path(path).name, file


class QuickDraw(L2lEpisodes):
    """Quick, Draw!: drawings of 345 things, (1, 28, 28); 241 / 52 / 52 classes.

    Ink is 1 on background 0.
    Of each class the first `per_class` drawings of its file; there are 50 million in all. Read by
    learn2learn's class lists, without its index, which has an entry for every drawing. learn2learn
    downloads with gsutil, which has to be installed.
    Sources: Ha and Eck 2017, arXiv:1704.03477; classes of Triantafillou et al. 2020,
    arXiv:1903.03096.
    """

    name, dataset, size = "l2l-quickdraw", "Quickdraw", "50 GB by gsutil"
    side, channels = 28, "gray"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: NQuery = 15,
        root: Root = None,
        per_class: Annotated[
            int, Field(ge=2, description="drawings of each class, from the first")
        ] = 1000,
        image_size: ImageSize = None,
        download: Download = False,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            root,
            image_size,
            "none",
            download,
            items_per_class,
            sampling,
            episodes_per_draw,
        )
        self.per_class = per_class

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"quickdraw/{name}.npy" for name in splits_of("quickdraw")[split]]

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        return self._decode(self.find(split), split)  # as quick as reading a decoded copy

    def labelled(self, folder: Path, split: fsl.Split) -> Iterator[tuple[str, np.ndarray]]:
        for path in self.needs(split):
            for drawing in np.load(folder / path, mmap_mode="r")[: self.per_class]:
                yield Path(path).stem, drawing.reshape(28, 28)


class Fungi(L2lEpisodes):
    """FGVCx Fungi (2018): 89,760 photographs of 1,394 species, 994 / 200 / 200 classes.

    Its terms of use have to be agreed to.
    Sources: the fungi competition of the fifth workshop on fine-grained visual categorisation;
    classes of Triantafillou et al. 2020, arXiv:1903.03096.
    """

    name, dataset, size = "l2l-fungi", "FGVCFungi", "12.9 GB"

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"fgvc_fungi/{part}" for part in ("images", "train.json", "val.json")]

    def class_names(self, data: Any, split: fsl.Split) -> list[str]:
        return splits_of("fgvc_fungi")[split]


class Flowers(L2lEpisodes):
    """VGG Flowers: 102 kinds of flowers, 40 to 258 pictures each, 71 / 15 / 16 classes.

    Classes are called by their numbers there.
    Sources: Nilsback and Zisserman 2008; classes of Triantafillou et al. 2020, arXiv:1903.03096.
    """

    name, dataset, size = "l2l-vgg-flowers", "VGGFlower102", "330 MB"

    def needs(self, split: fsl.Split) -> list[str]:
        return ["vgg_flower102/jpg", "vgg_flower102/imagelabels.mat"]

    def class_names(self, data: Any, split: fsl.Split) -> list[str]:
        return [f"{number:03d}" for number in splits_of("vgg_flowers")[split]]


class FullOmniglot(L2lEpisodes):
    """Omniglot as learn2learn reads it: 1,623 characters, 20 drawings each, (1, 28, 28).

    Ink is 1 on background 0. It has the classes, pixels and episodes of core's `omniglot` with the
    same options; see there. Drawings are resized by PIL's Lanczos filter and, if wanted, turned by
    90, 180 and 270 degrees as classes of their own.
    Source: Lake et al. 2015, Science 350:1332.
    """

    name, dataset, size, side, channels = "l2l-omniglot", "FullOmniglot", "15 MB", 28, "gray"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: NQuery = 15,
        root: Root = None,
        split: Annotated[
            Literal["vinyals", "learn2learn"],
            Field(description="1028/172/423 classes, or 1100/100/423 as in its benchmark"),
        ] = "learn2learn",
        rotations: Annotated[
            Literal["train", "all", "none"],
            Field(description="where turned drawings are classes of their own"),
        ] = "train",
        image_size: ImageSize = None,
        download: Download = False,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            root,
            image_size,
            "none",
            download,
            items_per_class,
            sampling,
            episodes_per_draw,
        )
        self.split, self.rotations = split, rotations

    def needs(self, split: fsl.Split) -> list[str]:
        return [f"{omniglot.FOLDER}/images_{part}.zip" for part in ("background", "evaluation")]

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        every_character = super().load("train")  # whichever split is asked for
        pool = every_character.select(omniglot.class_lists(self.split)[split])
        rotated = self.rotations == "all" or (self.rotations == "train" and split == "train")
        return omniglot.with_rotations(pool, (0, 90, 180, 270) if rotated else (0,))

    def fetch(self, root: Path, split: fsl.Split) -> None:
        learn2learn().vision.datasets.FullOmniglot(str(root), download=True)

    def open(self, folder: Path, split: fsl.Split) -> Any:
        known = torchvision().datasets.Omniglot.zips_md5
        published, found = dict(known), {}
        for path in self.needs(split):
            part, content = Path(path).stem, (folder / path).read_bytes()
            found[part] = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found[part] not in omniglot.CHECKSUMS[part]:
                wanted = omniglot.CHECKSUMS[part][0]
                raise fsl.DataError(
                    f"episodes {self.name!r}: {path}: md5 {found[part]}. {wanted}: delete the file "
                    "and fetch it again"
                )
            with zipfile.ZipFile(folder / path) as archive:
                archive.extractall(folder / omniglot.FOLDER)
        try:
            known.update(found)  # core also takes the same images in another archive
            return learn2learn().vision.datasets.FullOmniglot(str(folder))
        finally:
            known.update(published)

    def labelled(self, folder: Path, split: fsl.Split) -> Iterator[tuple[str, Image.Image]]:
        data = self.open(folder, split)
        parts = data.dataset.datasets
        names = [name for part in parts for name in part._characters]
        files = [file for part in parts for file, _ in part._flat_character_images]
        for i in sorted(range(len(data)), key=files.__getitem__):
            picture, label = data[i]
            yield names[label], picture

    def in_order(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return images

    def pixels(self, picture: Picture) -> torch.Tensor:
        if not isinstance(picture, Image.Image):
            return super().pixels(picture)
        size = self.task.input_shape[-1]
        resized = picture.convert("L").resize((size, size), Image.Resampling.LANCZOS)
        return 255 - torch.from_numpy(np.asarray(resized).copy())[None]


SOURCES: Iterable[type[L2lEpisodes]] = (
    MiniImagenet,
    TieredImagenet,
    CifarFs,
    Fc100,
    FullOmniglot,
    CubBirds,
    Aircraft,
    Textures,
    QuickDraw,
    Fungi,
    Flowers,
)

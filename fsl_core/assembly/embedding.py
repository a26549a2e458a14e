"""Features of pictures by a frozen backbone that is named alone, without a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsl_core.assembly.experiment import Experiment
from fsl_core.assembly.parts import build_part
from fsl_core.config.recipe import read_recipe
from fsl_core.config.sections import Catalogue
from fsl_core.data.cache import cached_tensors, content_key, forget
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone, embed_pool, part_keys
from fsl_core.data.pool import LabelledPool
from fsl_core.data.source import SPLITS, Split
from fsl_core.data.vision import decode_image, decode_images, refuse_faults
from fsl_core.episode import TaskShape
from fsl_core.errors import DataError, RecipeError
from fsl_core.files.writing import replacing
from fsl_core.nn.pretrained import PretrainedBackbone

SIZE = 84
"""Of pictures for a backbone that has no size of its own."""


def recipe_of(backbone: Mapping[str, Any], episodes: Mapping[str, Any]) -> dict[str, Any]:
    """A whole recipe that trains nothing."""
    return {
        "episodes": dict(episodes),
        "backbone": {**backbone, "frozen": True},
        "adapter": {"name": "nearest-centroid"},
        "outer": {"steps": 0},
    }


def frozen_backbone(
    section: Mapping[str, Any],
    catalogue: Catalogue,
    size: int | None = None,
    device: torch.device | str = "cpu",
) -> FrozenBackbone:
    """The backbone that a section of a recipe describes, frozen, for square colour pictures.

    section: such as {"name": "timm", "model": "tf_efficientnet_lite0", "weights": "FILE"}.
    size:    of the pictures; None: what a pretrained network wants, or else 84.
    RecipeError, as for a recipe, for options that do not fit.
    """
    recipe = read_recipe(recipe_of(section, {"name": "glyphs"}), catalogue)
    task = TaskShape("classification", 2, 1, 1, (3, size or SIZE, size or SIZE), 2)
    backbone: nn.Module = build_part(recipe, ("backbone",), task=task)
    if isinstance(backbone, PretrainedBackbone):
        size = size or backbone.preprocess.size
    shape = (3, size or SIZE, size or SIZE)
    try:
        return FrozenBackbone(backbone, shape, recipe.sections.backbone.precision).to(device)
    except ValueError as error:
        raise RecipeError(f"{recipe.document.where_built(('backbone',))}: {error}") from error


def embed_files(backbone: FrozenBackbone, files: Sequence[Path]) -> Tensor:
    """(n, feature_dim) float32 features of picture files in their order, on the CPU.

    Pictures are read as those of `image-folder`. Features are kept on disk under the bytes of the
    files. Raises DataError, which names them, for files that cannot be read.
    """
    size = backbone.item_shape[-1]
    key = content_key("features of files", backbone.digest, size, *files)

    def build() -> dict[str, Tensor]:
        images, faults = decode_images(
            files, lambda file: decode_image(file, size), (3, size, size)
        )
        refuse_faults(files, faults, "Whole image files")
        pool = LabelledPool(images, ("all",), (len(images),))
        return {"features": embed_pool(pool, backbone, "features of pictures", key)}

    features = cached_tensors(key, build)[0]["features"].float()
    forget(part_keys(key, len(files)))
    return features


@dataclass(frozen=True)
class Embedded:
    """Features of the splits of a source, as the episodes `arrays` read them.

    x: (n, feature_dim).    y: (n,) number of the class.    split: (n,) 0, 1 or 2 for train,
    validation and test.    classes: their names, by number.    left_out: why splits are not here.
    """

    x: Tensor
    y: Tensor
    split: Tensor
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def write(self, path: Path, backbone: FrozenBackbone) -> None:
        """One safetensors file: x, y, split; names and the backbone are in its metadata."""
        told = {"classes": json.dumps(self.classes), "backbone": "; ".join(backbone.notes)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            save_file({"x": self.x, "y": self.y, "split": self.split}, new, metadata=told)


def embed_splits(experiment: Experiment, splits: Sequence[Split] = ()) -> Embedded:
    """Features of these splits of an experiment whose backbone is frozen; of all, if none is named.

    A class in two splits has one number. DataError if a split that is named, or every one, has no
    items.
    """
    source = experiment.source
    if not isinstance(source, FeatureEpisodes):
        raise RecipeError(f"{experiment.recipe.named(('backbone',))}: not frozen. frozen: true")
    x, y, split, numbers, reasons = [], [], [], dict[str, int](), []
    for name in splits or SPLITS:
        try:
            pool = source.pool(name)
            if not len(pool):
                raise DataError(
                    f"episodes {source.name!r}: split {name!r} has no items. Classes for it, or "
                    "another split"
                )
        except DataError as error:
            if splits:
                raise
            reasons.append(str(error))
            continue
        own = [numbers.setdefault(label, len(numbers)) for label in pool.classes]
        x.append(pool.items)
        y.append(torch.tensor(own).repeat_interleave(torch.tensor(pool.counts)))
        split.append(torch.full((len(pool),), SPLITS.index(name)))
    if not x:
        raise DataError("\n".join(dict.fromkeys(reasons)))
    found = torch.cat(x).cpu(), torch.cat(y), torch.cat(split)
    return Embedded(*found, tuple(numbers), tuple(reasons))

"""The file of an adapted predictor: one safetensors file that needs no run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fsl_core.episode import TaskShape
from fsl_core.errors import RunError
from fsl_core.runs.checkpoints import read_tensors, save_tensors
from fsl_core.runs.files import (
    PluginFiles,
    Record,
    Whole,
    check_record,
    load_json,
    refuse_name,
    to_json,
    writing,
)

_KEY, _WEIGHTS, _SUPPORT = "fsl-predictor", "learner.", "support"


class _Saved(Record):
    """What is written beside the tensors."""

    classes: Annotated[list[str], Field(min_length=2)]
    found: list[Whole]
    invert: bool
    recipe: str
    plugin_files: PluginFiles


@dataclass(frozen=True)
class SavedPredictor:
    """What a file holds.

    weights: of the learner.
    images: the labelled pictures, (n, channels, size, size) uint8.
    record: the entries of `_Saved`.
    """

    weights: dict[str, Tensor]
    images: Tensor
    record: dict[str, Any]

    def shots_of(self, path: Path, task: TaskShape) -> tuple[int, ...]:
        """Labelled pictures of each class. RunError if they do not fit the recipe's task."""
        images, found = self.images, tuple(self.record["found"])
        shots = shots_of(len(images), found)
        fits = sum(shots) == len(images) and images.shape[1:] == tuple(task.input_shape)
        if images.dtype != torch.uint8 or not fits:
            raise RunError(
                f"{path}: labelled pictures of {images.dtype}, shape {tuple(images.shape)}, which "
                f"are not {len(found)} times as many, or all {sum(found)}, of its recipe. "
                "A file of `fsl predict --save`"
            )
        return shots


def shots_of(images: int, found: tuple[int, ...]) -> tuple[int, ...]:
    """Of each class, how many of the pictures found are among these: all, or as many of each."""
    return found if images == sum(found) else (images // len(found),) * len(found)


def write_saved(
    path: Path, weights: Mapping[str, Tensor], images: Tensor, record: Mapping[str, Any]
) -> None:
    refuse_name(path)
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in weights.items()}
    metadata = {_KEY: to_json(record, path)}
    with writing(path):
        save_tensors(path, {**tensors, _SUPPORT: images}, metadata)


def read_saved(path: Path) -> SavedPredictor:
    """Read a file of `write_saved`. RunError if it is damaged or another file."""
    refuse_name(path)
    try:
        tensors, metadata = read_tensors(path)
        record = check_record(load_json(metadata[_KEY]), _Saved)
        if len(record["found"]) != len(record["classes"]):
            raise ValueError("'found' is not one number for each class")
        if tensors[_SUPPORT].dim() != 4 or not len(tensors[_SUPPORT]):
            raise ValueError("'support' holds no pictures")
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise RunError(
            f"{path}: not a whole file of `fsl predict --save` ({reason}). "
            "Such a file, or a run directory"
        ) from error
    images = tensors.pop(_SUPPORT)
    weights = {name.removeprefix(_WEIGHTS): tensor for name, tensor in tensors.items()}
    return SavedPredictor(weights, images, record)

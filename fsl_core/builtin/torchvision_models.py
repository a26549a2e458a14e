"""Networks of torchvision, with its weights, those of a file, or none."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

import fsl_core as fsl
from fsl_core.data.downloads import download
from fsl_core.data.vision import torchvision
from fsl_core.text import suggest

MEGABYTES = 4096
"""More than any of torchvision's files of weights."""


class Torchvision(fsl.PretrainedBackbone):
    """A classification network of torchvision without its classifier.

    Pictures are resized to the crop size that its weights were made with and normalised by their
    mean and deviation. Differs from torchvision's transforms: bicubic, and no margin is cut off,
    since pictures of an episode are squares already.

    weights: default: those that torchvision recommends, from torch's folder of downloads, or
        fetched into it and held against the checksum in their name. A file: .safetensors, or of
        torch.save, never run as code. null: random start values.
    """

    name = "torchvision"

    def __init__(
        self,
        task: fsl.TaskShape,
        frozen: bool,
        model: Annotated[str, Field(description="of torchvision.models, such as resnet18")],
        weights: Annotated[
            Literal["default"] | Path | None,
            Field(description="default: torchvision's own; or a file; null: start values"),
        ] = "default",
        layer: Annotated[
            str | None, Field(description="whose output are the features, such as layer3")
        ] = None,
        train: Annotated[
            list[str] | None,
            Field(description="patterns of the parameters to train, such as layer4.*; null: all"),
        ] = None,
        norm: Annotated[
            Literal["fixed", "running", "transductive"],
            Field(description="batch norms: averages of the weights; moved by training; the batch"),
        ] = "fixed",
    ):
        known = _known(model)
        net = torchvision().models.get_model(model, weights=None)
        _drop_classifier(net)
        file = _default_file(model, known) if weights == "default" else weights
        loaded = fsl.load_weights(net, file) if file is not None else None
        size, mean, std = _wanted(known)
        super().__init__(
            task.input_shape,
            net,
            fsl.Preprocessing(size, mean, std),
            weights=loaded,
            layer=layer,
            train=train,
            norm=norm,
            frozen=frozen,
        )


def _known(model: str) -> Any:
    """The entry of torchvision's weights for this model. ValueError for an unknown name."""
    models: ModuleType = torchvision().models
    names = models.list_models(module=models)
    if model not in names:
        raise ValueError(f"model: torchvision has no {model!r}. {suggest(model, names)}")
    return models.get_model_weights(model).DEFAULT


def _wanted(known: Any) -> tuple[int, list[float], list[float]]:
    transforms = known.transforms()
    return transforms.crop_size[0], transforms.mean, transforms.std


def _drop_classifier(net: nn.Module) -> None:
    """Its last linear layer becomes the identity."""
    name = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)][-1]
    owner, _, key = name.rpartition(".")
    setattr(net.get_submodule(owner), key, nn.Identity())


def _default_file(model: str, known: Any) -> Path:
    """torchvision's file of weights, fetched if it is not there."""
    name = known.url.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        checksum = Path(name).stem.rpartition("-")[2]
        try:
            download([known.url], file, checksum, MEGABYTES, "sha256")
        except fsl.DataError as error:
            raise ValueError(
                f"weights: {model}: {error}. Fetch {known.url} and put it at {file}, or name it as "
                "`weights: FILE`"
            ) from error
    return file


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Torchvision)

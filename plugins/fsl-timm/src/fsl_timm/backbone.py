"""The backbone `timm`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

import fsl_core as fsl
from fsl_timm.library import create, pretrained_file, timm


class Timm(fsl.PretrainedBackbone):
    """A network of timm without its classifier: (n, channels, height, width) to its features.

    Pictures are resized (bicubic) to the input size of the model's own configuration and normalised
    by its mean and deviation. Differs from timm's transforms: no margin is cut off, since pictures
    of an episode are squares already.

    weights: pretrained: timm's own, from the Hugging Face Hub or its cache. A file: .safetensors,
        or of torch.save, never run as code; fitted by name, or else by position if all shapes are
        equal. null: random start values.
    """

    name = "timm"

    def __init__(
        self,
        task: fsl.TaskShape,
        frozen: bool,
        model: Annotated[str, Field(description="any name of timm.list_models()")],
        weights: Annotated[
            Literal["pretrained"] | Path | None,
            Field(description="pretrained: timm's own; or a file; null: start values"),
        ] = "pretrained",
        layer: Annotated[
            str | None, Field(description="whose output are the features, such as blocks.4")
        ] = None,
        size: Annotated[
            int | None,
            Field(gt=0, description="height and width it is shown; null: of its configuration"),
        ] = None,
        train: Annotated[
            list[str] | None,
            Field(description="patterns of the parameters to train, such as blocks.6.*; null: all"),
        ] = None,
        norm: Annotated[
            Literal["fixed", "running", "transductive"],
            Field(description="batch norms: averages of the weights; moved by training; the batch"),
        ] = "fixed",
    ):
        net = create(model, size)
        wanted = timm().data.resolve_model_data_config(net)
        file = pretrained_file(model, net) if weights == "pretrained" else weights
        loaded = fsl.load_weights(net, file) if file is not None else None
        super().__init__(
            task.input_shape,
            _plain_norms(net),
            fsl.Preprocessing(size or wanted["input_size"][-1], wanted["mean"], wanted["std"]),
            weights=loaded,
            layer=layer,
            train=train,
            norm=norm,
            frozen=frozen,
        )


def _plain_norms(net: nn.Module) -> nn.Module:
    """timm's batch norms with an activation inside as torch's own, followed by the activation."""
    fused = import_module("timm.layers").BatchNormAct2d

    def plain(layer: Any) -> nn.Module:
        norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine)
        norm.load_state_dict(layer.state_dict())
        return nn.Sequential(norm, layer.drop, layer.act)

    for owner in list(net.modules()):
        for key, child in owner.named_children():
            if type(child) is fused:
                setattr(owner, key, plain(child))
    return net

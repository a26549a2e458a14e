"""Changes of the backbone's weights, generated from the task embedding.

At the start of training they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal, NamedTuple

from torch import Tensor, nn

import fsl_core as fsl

Modulate = Literal["none", "film", "low-rank"]
Weights = dict[str, Tensor]
"""Parameters of the backbone by name."""

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Film(nn.Module):
    """Per channel, output <- (1 + gamma) * output + beta.

    gamma and beta are linear in the task embedding. Of the norm layers with scale and shift; in a
    backbone without any, of its convolutions and linear layers (a norm after one of them would undo
    it). It is folded into their parameters: weight <- weight * (1 + gamma), by output channel, and
    bias <- bias * (1 + gamma) + beta; a layer without a bias is scaled only.

    Source: Perez et al. 2018, arXiv:1709.07871. Of a whole backbone from a support set: Requeima et
    al. 2019, arXiv:1906.07697, which freezes a pretrained one.
    """

    def __init__(self, backbone: nn.Module, embedding: int):
        super().__init__()
        self.layers = _affine_norms(backbone) or _linear_layers(backbone)
        _require_layers(
            "film",
            self.layers,
            backbone,
            "norm layers with scale and shift, convolutions or linear layers",
        )
        self.sizes = [
            channels for layer in self.layers for channels in [layer.channels] * len(layer.names)
        ]
        self.generate = _zeros(nn.Linear(embedding, sum(self.sizes)))

    def forward(self, embedding: Tensor, weights: Weights) -> Weights:
        """The changed weights alone."""
        parts = iter(self.generate(embedding).split(self.sizes))
        changed: Weights = {}
        for layer in self.layers:
            factor = 1 + next(parts)
            scaled = [
                weights[name] * factor.view(-1, *[1] * (weights[name].dim() - 1))
                for name in layer.names
            ]
            if len(scaled) == 2:
                scaled[1] = scaled[1] + next(parts)
            changed |= zip(layer.names, scaled, strict=True)
        return changed


class LowRank(nn.Module):
    """weight <- weight + U V of every convolution and linear layer.

    U (channels, rank), V (rank, inputs per channel). Both are linear in the task embedding; U
    starts at zero. The factorisation is that of Hu et al. 2021, arXiv:2106.09685.
    """

    def __init__(self, backbone: nn.Module, embedding: int, rank: int):
        super().__init__()
        self.layers, self.rank = _linear_layers(backbone), rank
        _require_layers("low-rank", self.layers, backbone, "convolutions or linear layers")
        self.left = _zeros(
            nn.Linear(embedding, rank * sum(layer.channels for layer in self.layers))
        )
        self.right = nn.Linear(embedding, rank * sum(layer.inputs for layer in self.layers))

    def forward(self, embedding: Tensor, weights: Weights) -> Weights:
        """The changed weights alone."""
        lefts = self.left(embedding).split([self.rank * layer.channels for layer in self.layers])
        rights = self.right(embedding).split([self.rank * layer.inputs for layer in self.layers])
        changed = {}
        for layer, left, right in zip(self.layers, lefts, rights, strict=True):
            name = layer.names[0]
            update = left.view(-1, self.rank) @ right.view(self.rank, -1)
            changed[name] = weights[name] + update.view_as(weights[name])
        return changed


class _Layer(NamedTuple):
    """A layer of the backbone that can be changed.

    names:  of its weight, and of its bias if it has one.
    inputs: how many numbers one output channel is computed from.
    """

    names: tuple[str, ...]
    channels: int
    inputs: int


def _affine_norms(backbone: nn.Module) -> list[_Layer]:
    torch_norms = _layers(backbone, _NORMS, "weight", "bias")
    return [
        *_layers(backbone, (fsl.Norm,), "scale", "shift"),
        *(layer for layer in torch_norms if layer.inputs == 1),
    ]


def _linear_layers(backbone: nn.Module) -> list[_Layer]:
    return list(_layers(backbone, _LINEAR, "weight", "bias"))


def _layers(
    backbone: nn.Module, kinds: tuple[type, ...], weight: str, bias: str
) -> Iterator[_Layer]:
    """Those modules of these kinds that have a weight. Names are relative to the backbone."""
    known = dict(backbone.named_parameters())
    for prefix, module in backbone.named_modules():
        names = [f"{prefix}.{name}" if prefix else name for name in (weight, bias)]
        if isinstance(module, kinds) and names[0] in known:
            shape = known[names[0]].shape
            yield _Layer(tuple(name for name in names if name in known), shape[0], prod(shape[1:]))


def _require_layers(option: str, layers: list[_Layer], backbone: nn.Module, wanted: str) -> None:
    if not layers:
        raise ValueError(
            f"modulate: {option!r} of a backbone ({type(backbone).__name__}) without {wanted}. "
            "'none', or a backbone with such layers"
        )


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

"""The encoder of R2-D2: wide convolution blocks, of which the last two give the features."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl

Filters = Annotated[int, Field(gt=0)]
SMALLEST = 16
"""Height and width of which three poolings by two leave the 2x2 map that the last one needs."""


@fsl.validated
class R2d2(fsl.NormedBackbone):
    """4 x [3x3 convolution (padding 1) - norm - 2x2 max-pooling - leaky ReLU - dropout].

    The first three poolings halve height and width, that of the last block has stride 1. Features
    are the third map, pooled once more with stride 1, and the fourth one, one after the other:
    (n, channels_in, height, width) -> (n, feature_dim); 32x32 gives 9 * (384 + 512) = 8064.
    Dropout follows the third and the fourth block.

    Source: Bertinetto et al. 2019, arXiv:1805.08136, and its code, which has dropout 0.4 for
    CIFAR-FS and a variant with 64 filters in each block.
    """

    name = "r2d2"

    def __init__(
        self,
        task: fsl.TaskShape,
        widths: Annotated[
            tuple[Filters, Filters, Filters, Filters], Field(description="filters of each block")
        ] = (96, 192, 384, 512),
        norm: Annotated[
            fsl.NormPolicy, Field(description="what a layer's mean and variance are taken over")
        ] = "ordinary",
        dropout: Annotated[
            float, Field(ge=0, lt=1, description="share of numbers dropped by the last two blocks")
        ] = 0.0,
        slope: Annotated[float, Field(ge=0, description="of the ReLU below zero")] = 0.1,
    ):
        super().__init__(norm)
        if len(task.input_shape) != 3 or min(task.input_shape[1:]) < SMALLEST:
            raise ValueError(
                f"r2d2: items of shape {tuple(task.input_shape)}. "
                f"Pictures, (channels, height, width), of {SMALLEST}x{SMALLEST} pixels or more"
            )
        channels, height, width = task.input_shape
        block = partial(fsl.ConvBlock, norm=norm, init="torch", slope=slope)
        first, second, third, fourth = pairwise((channels, *widths))
        self.maps = nn.Sequential(block(*first), block(*second), block(*third))
        self.last = block(*fourth, pool_stride=1)
        self.dropout = nn.Dropout(dropout)
        self.feature_dim = ((height >> 3) - 1) * ((width >> 3) - 1) * (widths[2] + widths[3])

    def features(self, x: Tensor) -> Tensor:
        third = self.dropout(self.maps(x))
        fourth = self.dropout(self.last(third))
        return torch.cat([F.max_pool2d(third, 2, stride=1).flatten(1), fourth.flatten(1)], dim=1)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(R2d2)

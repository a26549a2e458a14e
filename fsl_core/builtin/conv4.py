"""The four convolution blocks of the few-shot literature."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl


@fsl.validated
class Conv4(fsl.NormedBackbone):
    """4 x [3x3 convolution (padding 1, bias) - norm - ReLU - 2x2 max-pooling].

    The last map becomes one vector: (n, channels_in, height, width) -> (n, feature_dim); 28x28
    gives 64 features, 84x84 gives 1600. Weights start normal with variance 2 / (9 * channels),
    biases at zero, norms at scale one and shift zero.

    With `downsample: stride` the convolutions halve height and width and nothing is pooled. MAML's
    code on Omniglot is this with `readout: mean`, `init: xavier`, `norm_scale: false` and
    `norm_eps: 0.001`.

    Sources: Vinyals et al. 2016, arXiv:1606.04080 (architecture, 64 channels); Finn et al. 2017,
    arXiv:1703.03400 (32 channels for mini-ImageNet; strides in its code); Chen et al. 2019,
    arXiv:1904.04232 (start values; that code leaves the biases at torch's default).
    """

    name = "conv4"

    def __init__(
        self,
        task: fsl.TaskShape,
        channels: Annotated[int, Field(gt=0, description="filters of each block")] = 64,
        norm: Annotated[
            fsl.NormPolicy, Field(description="what a layer's mean and variance are taken over")
        ] = "transductive",
        blocks: Annotated[int, Field(gt=0, description="each one halves height and width")] = 4,
        readout: Annotated[
            Literal["flatten", "mean"],
            Field(description="the last map as it is, or its mean over height and width"),
        ] = "flatten",
        downsample: Annotated[
            Literal["pool", "stride"],
            Field(
                description="how a block halves height and width: by 2x2 max-pooling, or by its "
                "convolution (TensorFlow's SAME frame)"
            ),
        ] = "pool",
        init: Annotated[
            Literal["kaiming", "xavier"],
            Field(
                description="filters at the start: normal, by the number of filters; or uniform, "
                "by channels in and out"
            ),
        ] = "kaiming",
        norm_scale: Annotated[
            bool, Field(description="whether norms have a learned scale beside their shift")
        ] = True,
        norm_eps: Annotated[float, Field(gt=0, description="added to a norm's variance")] = 1e-5,
    ):
        super().__init__(norm)
        if len(task.input_shape) != 3:
            raise ValueError(
                f"conv4: items of shape {tuple(task.input_shape)}. "
                "Expected pictures, (channels, height, width)"
            )
        channels_in, height, width = task.input_shape
        if downsample == "pool" and min(height, width) < 2**blocks:
            raise ValueError(
                f"conv4: pictures of {height}x{width}, of which {blocks} poolings leave no pixel. "
                f"At least {2**blocks}x{2**blocks}, or fewer blocks"
            )
        widths = [channels_in] + [channels] * blocks
        block = partial(
            fsl.ConvBlock,
            norm=norm,
            downsample=downsample,
            init=init,
            norm_scale=norm_scale,
            norm_eps=norm_eps,
        )
        self.blocks = nn.Sequential(*(block(i, o) for i, o in pairwise(widths)))
        self.readout = readout
        # A pooling drops a row or column that is left over, a stride keeps it.
        left_over = 2**blocks - 1 if downsample == "stride" else 0
        places = (height + left_over >> blocks) * (width + left_over >> blocks)
        self.feature_dim = channels * (1 if readout == "mean" else places)

    def features(self, x: Tensor) -> Tensor:
        maps = self.blocks(x)
        return maps.mean((2, 3)) if self.readout == "mean" else maps.flatten(1)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Conv4)

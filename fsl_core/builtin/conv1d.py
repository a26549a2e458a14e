"""A convolutional network over time."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl


@fsl.validated
class Conv1d(fsl.NormedBackbone):
    """[convolution over `width` - norm - ReLU - 2-max-pooling] x blocks, then the mean over time.

    (n, time, channels_in) -> (n, channels).
    """

    name = "conv1d"

    def __init__(
        self,
        task: fsl.TaskShape,
        channels: Annotated[int, Field(gt=0, description="filters of each block")] = 64,
        blocks: Annotated[int, Field(gt=0, description="each one halves the time")] = 3,
        width: Annotated[int, Field(gt=0, description="of a filter, in steps of time")] = 5,
        norm: Annotated[
            fsl.NormPolicy, Field(description="what a layer's mean and variance are taken over")
        ] = "transductive",
    ):
        super().__init__(norm)
        if len(task.input_shape) != 2 or task.input_shape[0] < 2**blocks:
            raise ValueError(
                f"conv1d: items of shape {tuple(task.input_shape)}. "
                f"Expected signals, (time, channels), of {2**blocks} steps of time or more, or "
                "fewer blocks"
            )
        widths = [task.input_shape[1]] + [channels] * blocks
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(i, o, width, padding="same"),
                    fsl.Norm(norm, o),
                    nn.ReLU(),
                    nn.MaxPool1d(2),
                )
                for i, o in pairwise(widths)
            )
        )
        self.feature_dim = channels

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(x.transpose(1, 2)).mean(2)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Conv1d)

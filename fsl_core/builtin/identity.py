"""Features that are there already."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

import fsl_core as fsl


@fsl.validated
class Identity(nn.Module):
    """The items themselves, flattened: (n, *input_shape) -> (n, prod(input_shape)).

    For feature vectors of a network that is not trained here. Nothing in it can be trained, so the
    adapter has to have weights, or `outer.steps` is 0.
    """

    name = "identity"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.feature_dim = prod(task.input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Identity)

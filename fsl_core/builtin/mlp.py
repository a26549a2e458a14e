"""A fully connected network over flattened items."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl

Widths = Annotated[
    tuple[Annotated[int, Field(gt=0)], ...],
    Field(min_length=1, description="units of each hidden layer"),
]


@fsl.validated
class Mlp(fsl.NormedBackbone):
    """[linear - norm - ReLU] for each width in `hidden`: (n, *input_shape) -> (n, hidden[-1]).

    With an adapter's linear head the default is the 1-40-40-1 network of the sinusoid tasks;
    `hidden: [256, 128, 64, 64]` with `norm: transductive` is the non-convolutional Omniglot
    network. Both: Finn et al. 2017, arXiv:1703.03400. Differs: torch's default start values
    (uniform, Kaiming); the MAML code starts normal with deviation 0.01.
    """

    name = "mlp"

    def __init__(
        self,
        task: fsl.TaskShape,
        hidden: Widths = (40, 40),
        norm: Annotated[
            fsl.NormPolicy, Field(description="what a layer's mean and variance are taken over")
        ] = "none",
    ):
        super().__init__(norm)
        widths = [prod(task.input_shape), *hidden]
        layers = [
            nn.Sequential(nn.Linear(i, o), fsl.Norm(norm, o), nn.ReLU())
            for i, o in pairwise(widths)
        ]
        self.layers = nn.Sequential(*layers)
        self.feature_dim = widths[-1]

    def features(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Mlp)

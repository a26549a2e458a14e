"""The weighting `random`: a baseline that any other has to beat."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

import fsl_core as fsl
from fsl_weighted_outer_loss.checks import softmax


@fsl.validated
class Random(fsl.TaskWeighting):
    """weights = softmax(z) with standard normal z, or uniform on the simplex.

    They are drawn again at each outer step. Their mean is uniform: they add noise to the
    meta-gradient and nothing else.
    Source: Lin et al. 2022, arXiv:2111.10603 (random loss weighting); the simplex is a Dirichlet
    distribution.
    """

    name = "random"
    needs = frozenset()

    def __init__(
        self,
        distribution: Annotated[
            Literal["normal", "simplex"],
            Field(description="softmax of a normal vector, or uniform on the simplex"),
        ] = "normal",
    ):
        super().__init__()
        self.distribution = distribution

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        n = len(outcomes.losses)  # drawn on the CPU: the same on every device
        if self.distribution == "normal":
            return softmax(torch.randn(n)).to(outcomes.losses)
        gaps = torch.empty(n).exponential_()
        return (gaps / gaps.sum()).to(outcomes.losses)

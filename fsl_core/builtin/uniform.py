"""Every task counts the same."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

import fsl_core as fsl


@fsl.validated
class Uniform(fsl.TaskWeighting):
    """weights[i] = 1 / meta_batch_size, the mean over tasks; or 1, their sum.

    Source: Finn et al. 2017, arXiv:1703.03400, whose code averages. The official HyperMAML code
    sums.
    """

    name = "uniform"
    needs = frozenset()

    def __init__(
        self,
        reduction: Annotated[
            Literal["mean", "sum"],
            Field(
                description="mean over the meta-batch, or sum (a step meta_batch_size times as "
                "long)"
            ),
        ] = "mean",
    ):
        super().__init__()
        self.reduction = reduction
        self.total = "one" if reduction == "mean" else "tasks"

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        ones = torch.ones_like(outcomes.losses)
        return ones / len(ones) if self.reduction == "mean" else ones


@fsl.hookimpl
def fsl_register_weightings(register):
    register(Uniform)

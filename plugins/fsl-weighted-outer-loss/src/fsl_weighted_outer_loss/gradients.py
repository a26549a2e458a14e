"""Weights that compare the tasks' gradients: `gradient-similarity` and `gradient-norm`."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

import fsl_core as fsl
from fsl_weighted_outer_loss.checks import (
    Temperature,
    positive_log,
    softmax,
)
from fsl_weighted_outer_loss.geometry import Columns, GradientPart, Part, compare


@fsl.validated
class GradientSimilarity(fsl.TaskWeighting):
    """weights = softmax(agreement / temperature): tasks that pull with the others count more.

    agreement mean: agreement[i] = cos(g_i, mean_j g_j).
    agreement pairwise: agreement[i] = mean over j != i of cos(g_i, g_j).
    The cosine with a gradient of zero is 0; a single task has no others, and weighs 1.
    Temperature to infinity: uniform.
    Interpretation of O-AMFS (Park and Kang 2024, arXiv:2411.00404) from the published abstract,
    which weighs the tasks' losses; the formula was not available. No published figure is claimed.
    """

    name = "gradient-similarity"
    needs = frozenset({"gradients"})

    def __init__(
        self,
        columns: Columns,
        agreement: Annotated[
            Literal["mean", "pairwise"],
            Field(description="cosine to the mean gradient, or mean cosine to the others"),
        ] = "mean",
        temperature: Temperature = 1.0,
        gradient: Part = "all",
    ):
        super().__init__()
        self.agreement, self.temperature = agreement, temperature
        self.part = GradientPart(columns, gradient, self.name)

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        cosines, lengths = compare(self.part(outcomes.gradients))
        agreement = _to_mean(cosines, lengths) if self.agreement == "mean" else _to_others(cosines)
        return softmax(agreement, self.temperature)


def _to_mean(cosines: Tensor, lengths: Tensor) -> Tensor:
    """cos(g_i, mean_j g_j) = sum_j cos_ij |g_j| / |sum_j g_j|."""
    projections = cosines @ lengths
    rounding = torch.finfo(lengths.dtype).eps  # all that is left if the gradients cancel
    total = (lengths @ projections).clamp_min(rounding).sqrt()
    return (projections / total).clamp(-1, 1)


def _to_others(cosines: Tensor) -> Tensor:
    return (cosines.sum(1) - cosines.diagonal()) / max(1, len(cosines) - 1)


@fsl.validated
class GradientNorm(fsl.TaskWeighting):
    """weights proportional to loss^alpha / |g|.

    With alpha 0 every task pulls equally hard, with a larger one harder tasks pull more.
    |g|: length of the task's gradient, at least `floor` times the longest, so that a solved task
    does not outweigh the rest.
    Source: Chen et al. 2018, arXiv:1711.02257 (GradNorm), which moves weights by gradient steps
    until weights[i] * |g_i| is proportional to r_i^alpha. Interpretation: that point itself,
    reached at every step; r_i, a task's loss relative to its first one and to the other tasks', is
    relative to the other tasks' alone, because episodes come once.
    """

    name = "gradient-norm"
    needs = frozenset({"gradients"})

    def __init__(
        self,
        columns: Columns,
        alpha: Annotated[
            float, Field(ge=0, description="0: equal pull; larger: harder tasks pull more")
        ] = 0.0,
        floor: Annotated[
            float, Field(gt=0, le=1, description="shortest gradient, as a share of the longest")
        ] = 0.01,
        gradient: Part = "all",
    ):
        super().__init__()
        self.alpha, self.floor = alpha, floor
        self.part = GradientPart(columns, gradient, self.name)
        self.needs = frozenset({"losses", "gradients"}) if alpha else frozenset({"gradients"})

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        _, lengths = compare(self.part(outcomes.gradients))
        pull = self.alpha * positive_log(outcomes.losses) if self.alpha else 0.0
        return softmax(pull - lengths.clamp_min(self.floor).log())

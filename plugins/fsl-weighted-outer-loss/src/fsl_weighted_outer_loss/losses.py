"""Weights that depend on losses alone: `softmax-loss`, `focal`, `worst-case`, `log-loss`."""

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


@fsl.validated
class SoftmaxLoss(fsl.TaskWeighting):
    """weights = softmax(loss / temperature), or softmax(-loss / temperature).

    first hard: the gradient of temperature * log mean exp(loss / temperature), which lies between
    the mean (temperature to infinity) and the largest loss (to 0).
    first easy: with a minus, so that easy tasks weigh most.
    Source: Li et al. 2021, arXiv:2007.01162, tilted empirical risk minimisation with
    t = 1 / temperature or -1 / temperature. Interpretation: over the tasks of a meta-batch.
    """

    name = "softmax-loss"

    def __init__(
        self,
        first: Annotated[
            Literal["hard", "easy"], Field(description="which tasks weigh most")
        ] = "hard",
        temperature: Temperature = 1.0,
    ):
        super().__init__()
        self.sign, self.temperature = 1 if first == "hard" else -1, temperature

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        return softmax(self.sign * outcomes.losses, self.temperature)


@fsl.validated
class Focal(fsl.TaskWeighting):
    """weights proportional to (1 - p)^gamma with p = exp(-loss): tasks that are solved fade out.

    Of a mean cross-entropy, p is the geometric mean of the probabilities of the right classes; of a
    squared error it has no such meaning. gamma 0: uniform. Losses at or below zero count as solved.
    Source: Lin et al. 2017, arXiv:1708.02002 (gamma 2), of single examples. Interpretation: of
    tasks, the factor not differentiated, and weights that sum to one.
    """

    name = "focal"

    def __init__(
        self,
        gamma: Annotated[
            float, Field(ge=0, description="how fast solved tasks fade; 0: not at all")
        ] = 2.0,
    ):
        super().__init__()
        self.gamma = gamma

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        return softmax(self.gamma * positive_log(-torch.expm1(-outcomes.losses)))


@fsl.validated
class WorstCase(fsl.TaskWeighting):
    """The mean of the hardest `share` of the meta-batch (CVaR).

    share 0: the hardest task alone. share 1: uniform.
    With k = max(1, share * meta_batch_size) the k hardest tasks weigh 1 / k; if k is not whole or
    tasks tie at the edge, those at the edge divide what is left. It is the largest
    sum_i w_i * loss_i with w_i <= 1 / k and sum_i w_i = 1.
    Sources: max, Collins et al. 2020, arXiv:2002.04766 (TR-MAML). Differs: the maximum over the
    meta-batch, without a probability for each task; `memory` with `score: sum` keeps one.
    CVaR: Wang et al. 2023, arXiv:2310.00708, whose tail of the meta-batch is a whole number of
    tasks.
    """

    name = "worst-case"

    def __init__(
        self,
        share: Annotated[
            float,
            Field(ge=0, le=1, description="of the meta-batch that counts; 0: the hardest task"),
        ] = 0.0,
    ):
        super().__init__()
        self.share = share

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        losses = outcomes.losses
        k = max(1.0, self.share * len(losses))
        # The task that k ends in; a whole number ends in the one before.
        rank = min(int(k - 1e-9), len(losses) - 1)
        edge = losses.sort(descending=True).values[rank]
        above, at = (losses > edge).to(losses), (losses == edge).to(losses)
        return (above + at * (k - above.sum()) / at.sum()) / k


@fsl.validated
class LogLoss(fsl.TaskWeighting):
    """weights = 1 / (B steps max(loss, floor)): the gradient of the mean of (1 / steps) log loss.

    B tasks. The mean logarithm is that of the geometric mean of the losses: a task weighs in
    inverse proportion to its loss, the opposite of `worst-case`. The weights are of any sum; the
    loss that is reported stays the loss. Meant for regression: of a cross-entropy near 0 a solved
    task would weigh without bound, but for the floor.
    Source: Wang, Yuan, Wu and Ge 2021, arXiv:2006.16495, of a quadratic whose step size is learned:
    the plain meta-gradient vanishes or explodes with the steps, that of the logarithm over them
    does not. Interpretation: over tasks.
    """

    name = "log-loss"
    total = "any"

    def __init__(
        self,
        steps: Annotated[
            int, Field(gt=0, description="inner steps t of (1 / t) log loss; a factor of the rate")
        ] = 1,
        floor: Annotated[
            float, Field(gt=0, description="losses below it weigh as if they were of this size")
        ] = 1e-8,
    ):
        super().__init__()
        self.steps, self.floor = steps, floor

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        share = 1 / (len(outcomes.losses) * self.steps)
        return share / outcomes.losses.clamp_min(self.floor)

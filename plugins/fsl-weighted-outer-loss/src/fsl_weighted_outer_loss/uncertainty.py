"""The weighting `uncertainty`: learned log-variances."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl

SMALLEST = 1e-12
"""A smaller loss counts as this."""


@fsl.validated
class Uncertainty(fsl.TaskWeighting):
    """weights[i] = exp(-s_i) / meta_batch_size with learned log-variances s_i.

    They minimise mean_i(exp(-s_i) * loss_i + s_i).
    of task: one s for each task of a finite set; its best value is the logarithm of the task's
    loss.
    of loss: s_i = level + slope * log(loss_i), for tasks that come once; slope goes from 0,
    uniform, towards 1: then every weight is 1 / loss_i and the outer loop follows the mean
    logarithm of the losses.
    All start at 0 and are trained by the outer optimizer. Weights are not normalised, as in the
    source.
    Source: Kendall et al. 2018, arXiv:1705.07115, the Gaussian likelihood up to a factor 2. Of
    loss: interpretation; losses at or below zero have no logarithm and count as 1e-12.
    """

    name = "uncertainty"
    total = "any"

    def __init__(
        self,
        tasks: int | None = None,
        of: Annotated[
            Literal["loss", "task"],
            Field(description="a function of the loss, or one variance a task of a finite set"),
        ] = "loss",
    ):
        super().__init__()
        self.tasks: int | None = None
        if of == "task":
            self.tasks = known_tasks(tasks, self.name, "or `of: loss`")
            self.log_variance = nn.Parameter(torch.zeros(self.tasks))
        else:
            self.level, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        losses = outcomes.losses
        if self.tasks is None:
            log_variances = self.level + self.slope * losses.clamp_min(SMALLEST).log()
        else:
            log_variances = self.log_variance[known_ids(outcomes.ids, self.tasks, self.name)]
        return (-log_variances).exp().to(losses) / len(losses)

    def objective(self, weights: Tensor, outcomes: fsl.Outcomes) -> Tensor:
        return (weights * outcomes.losses).sum() - weights.log().mean()


def known_tasks(tasks: int | None, weighting: str, instead: str) -> int:
    """The number of tasks; ValueError for episodes that have no finite set of them."""
    if tasks is None:
        raise ValueError(
            f"{weighting}: these episodes have no finite set of tasks to tell apart. "
            f"Episodes that do, such as sinusoid with `tasks: 25`, {instead}"
        )
    return tasks


def known_ids(ids: Tensor | None, tasks: int, weighting: str) -> Tensor:
    """The ids, all below `tasks`; DataError otherwise."""
    if ids is None:
        raise ValueError(f"{weighting}: outcomes without ids. Those of each task")
    if int(ids.max()) >= tasks or int(ids.min()) < 0:
        promised = f"the episodes say that they have {tasks} tasks"
        raise fsl.DataError(
            f"{weighting}: tasks {ids.tolist()}. Numbers in 0 .. {tasks - 1}: {promised}"
        )
    return ids

"""The weighting `memory`: what is remembered of each task of a finite set."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

import fsl_core as fsl
from fsl_weighted_outer_loss.checks import Temperature, softmax
from fsl_weighted_outer_loss.uncertainty import known_ids, known_tasks

LARGEST_RATIO = 1e6
"""Of a loss to its average."""


@fsl.validated
class Memory(fsl.TaskWeighting):
    """weights = softmax(score / temperature), by what each task's losses were before.

    average[id] <- decay * average[id] + (1 - decay) * loss, at first the loss itself. A task that
    comes twice in a meta-batch counts once, with its mean.

    score loss: average[id] with the present loss; hard tasks first, with less noise than
    `softmax-loss`.
    score progress: loss / average[id] before the present loss, 1 at first; tasks that improve least
    first. After dynamic weight averaging, Liu et al. 2019, arXiv:1803.10704 (temperature 2), which
    compares the last two epochs.
    score sum: the sum of all losses so far: exponentiated gradient ascent with step 1 / temperature
    on the tasks' probabilities. Source: Sagawa et al. 2020, arXiv:1911.08731 (group DRO). It plays
    the adversary of TR-MAML, Collins et al. 2020, arXiv:2002.04766, which instead adds and projects
    onto the simplex.

    Interpretation: tasks of a meta-learner instead of groups or heads, and weights that sum to one
    over the meta-batch. What is remembered lies in buffers, changes once an outer step and is saved
    with the run.
    """

    name = "memory"
    remembered: Tensor
    met: Tensor

    def __init__(
        self,
        tasks: int | None,
        score: Annotated[
            Literal["loss", "progress", "sum"],
            Field(description="running loss, loss relative to it, or sum of losses"),
        ] = "loss",
        decay: Annotated[
            float,
            Field(ge=0, lt=1, description="share of the old average that stays; 0: the last loss"),
        ] = 0.9,
        temperature: Temperature = 1.0,
    ):
        super().__init__()
        self.tasks = known_tasks(tasks, self.name, "or `softmax-loss`")
        self.score, self.decay, self.temperature = score, decay, temperature
        self.register_buffer("remembered", torch.zeros(self.tasks))
        self.register_buffer("met", torch.zeros(self.tasks, dtype=torch.bool))

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        ids = known_ids(outcomes.ids, self.tasks, self.name)
        losses = _mean_of_equal_ids(outcomes.losses.to(self.remembered), ids)
        at_first = torch.zeros_like(losses) if self.score == "sum" else losses
        before = torch.where(self.met[ids], self.remembered[ids], at_first)
        averaged = self.decay * before + (1 - self.decay) * losses
        after = before + losses if self.score == "sum" else averaged
        self.remembered[ids], self.met[ids] = after, torch.ones_like(ids, dtype=torch.bool)
        scores = _ratio(losses, before) if self.score == "progress" else after
        return softmax(scores, self.temperature).to(outcomes.losses)


def _mean_of_equal_ids(losses: Tensor, ids: Tensor) -> Tensor:
    same = (ids[:, None] == ids).to(losses)
    return (same @ losses) / same.sum(1)


def _ratio(losses: Tensor, before: Tensor) -> Tensor:
    """losses / before, at most a million; 1 where both are zero."""
    tiny = torch.finfo(losses.dtype).tiny
    return (losses.clamp_min(tiny) / before.clamp_min(tiny)).clamp_max(LARGEST_RATIO)

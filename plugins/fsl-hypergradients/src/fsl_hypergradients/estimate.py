"""What the estimates of this package share: refusals, and numbers that change from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fsl_core as fsl


class Estimate(fsl.Hypergradient):
    """An estimate from an inner problem. What it cannot do is refused before the first step.

    steps_done: () int64, outer steps made; a checkpoint holds it.
    """

    steps_done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def unfit(self, adapter: fsl.Adapter) -> str:
        if reason := super().unfit(adapter):
            return reason
        return "order: 1 is an estimate of its own. order: 2" if adapter.order == 1 else ""

    def refusal(self, problem: fsl.InnerProblem) -> str:
        """Why the derivative of this problem cannot be estimated so, or ""."""
        return ""

    def problem(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode
    ) -> fsl.InnerProblem:
        """The inner problem of an episode. FslError with the reason if it is refused."""
        problem = fsl.inner_problem_of(adapter, backbone, episode)
        if reason := self.refusal(problem):
            raise fsl.FslError(f"hypergradient {self.name!r}: {reason}")
        return problem

    def on_step(self, ids: Tensor) -> None:
        self.steps_done += 1


def changes(problem: fsl.InnerProblem) -> bool:
    """Whether inner steps move different weights."""
    return any(list(names) != list(problem.moved(0)) for names in problem.schedule)

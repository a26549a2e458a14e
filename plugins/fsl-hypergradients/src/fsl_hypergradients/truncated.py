"""The hypergradient `truncated`: derivatives of the last inner steps alone."""

from __future__ import annotations

from collections import deque
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.estimate import Estimate


@fsl.validated
class Truncated(Estimate):
    """Exact derivatives of the last K = `steps` inner steps; those before them as first-order.

        psi = phi_0(theta) + stopgrad(phi_{T-K} - phi_0(theta)),    then K steps with their graph

    steps 0 is first-order and steps T is unrolled. Memory grows with K, not with T. On a strongly
    convex inner loss the error falls with K like (1 - rate * smallest curvature)^K. At an exact
    minimiser of l + gamma / 2 ||phi - theta||^2 it is the Neumann sum
    a gamma sum_{k<K} (I - a (H + gamma I))^k grad L, plus (I - a (H + gamma I))^K grad L from psi.

    Learned rates keep their derivative in every step.

    Source: Shaban et al. 2019, arXiv:1810.10667 (truncated back-propagation). Differs: psi keeps
    phi_0, without which weights that are adapted from theta would get no gradient at K < T
    (interpretation). Where phi_0 does not depend on theta it is theirs.
    """

    name = "truncated"

    def __init__(
        self,
        steps: Annotated[
            int, Field(ge=0, description="inner steps at the end that are differentiated")
        ] = 1,
    ):
        super().__init__()
        self.steps = steps

    def unfit(self, adapter: fsl.Adapter) -> str:
        made = getattr(adapter, "inner_steps", self.steps)
        return super().unfit(adapter) or (self._too_many(made) if isinstance(made, int) else "")

    def refusal(self, problem: fsl.InnerProblem) -> str:
        return self._too_many(problem.steps)

    def _too_many(self, made: int) -> str:
        if self.steps <= made:
            return ""
        return f"steps: {self.steps}, and there are {made} inner steps in training. At most {made}"

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = self.problem(adapter, backbone, episode)
        last = deque(problem.points(last=self.steps), maxlen=1).pop()
        prediction = problem.predict(*last, episode.query.x)
        return loss(prediction, episode.query.y), prediction

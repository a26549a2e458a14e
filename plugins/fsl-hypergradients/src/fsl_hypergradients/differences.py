"""The hypergradient `finite-difference`: the last inner step's derivative by two gradients."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.calculus import (
    Weights,
    cut,
    derivatives,
    plus,
    query_loss,
    slopes,
)
from fsl_hypergradients.estimate import Estimate


@fsl.validated
class FiniteDifference(Estimate):
    """`truncated` with one step, whose second derivative is a central difference of gradients.

        g = dL/dtheta - a [dl/dtheta(phi_{T-1} + eps v) - dl/dtheta(phi_{T-1} - eps v)] / (2 eps)

    v = dL/dphi at phi_T, eps = radius / ||v||; for the start phi_0 it is v plus the same difference
    of dl/dphi, that is (I - a H) v. Other steps than phi - a * gradient give their own derivative
    in place of -a, and learned rates keep their derivative in every step. The error is O(eps^2),
    and none if l is quadratic. If v is zero, so is the difference. Any number of inner steps; BOML,
    whose strategy it is, takes one.

    Source: DARTS, Liu et al. 2019, arXiv:1806.09055, section 2.3, as BOML
    (github.com/dut-media-lab/BOML) puts it to one-stage bilevel problems. At BOML's head that
    module reads attributes that are never set: it was read, not run.
    """

    name = "finite-difference"

    def __init__(
        self,
        radius: Annotated[
            float, Field(gt=0, description="length of the step to either side, eps ||v||")
        ] = 0.01,
    ):
        super().__init__()
        self.radius = radius

    def refusal(self, problem: fsl.InnerProblem) -> str:
        dtypes = {weight.dtype for weight in problem.start.values()}
        small = [str(dtype) for dtype in dtypes if torch.finfo(dtype).bits < 32]
        device = next(iter(problem.start.values())).device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            small.append(str(torch.get_autocast_dtype(device)))
        if not small:
            return ""
        return f"differences of gradients in {small[0]} are noise. execution.precision: float32"

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = self.problem(adapter, backbone, episode)
        query, k = query_loss(problem, episode, loss), problem.steps - 1
        # phi_{T-1}, as first-order sees it: a derivative by it goes on to phi_0 and learned rates.
        begun = deque(islice(problem.points(order=1), max(problem.steps, 1)), maxlen=1).pop().phi
        phi, outer = cut(begun), cut(problem.outer)
        if k < 0:
            (to_phi, to_outer), value, prediction = derivatives(problem, query, phi, outer)
        else:
            gradient = problem.gradient(fsl.Point(phi, problem.at(outer, k)), k, False)

            def after(phi: Weights, gradient: Weights, outer: Weights) -> tuple[Tensor, Tensor]:
                return query(problem.step(phi, gradient, k, outer), outer)

            by_part, value, prediction = derivatives(problem, after, phi, gradient, outer)
            to_phi, to_gradient, to_outer = by_part
            by_phi, by_outer = self._difference(problem, phi, outer, to_gradient)
            to_phi, to_outer = plus(to_phi, by_phi), plus(to_outer, by_outer)
        tensors, gradients = problem.outer | begun, to_outer | to_phi
        return fsl.with_gradient(value, tensors, gradients), prediction

    def _difference(
        self, problem: fsl.InnerProblem, phi: Weights, outer: Weights, vector: Weights
    ) -> tuple[Weights, Weights]:
        """The derivatives of < dl/dphi, vector > by phi and outer, at the last step."""

        def support(phi: Weights, outer: Weights) -> Tensor:
            return problem.loss(phi, problem.at(outer, problem.steps - 1))

        length = torch.stack([part.square().sum() for part in vector.values()]).sum().sqrt()
        eps = torch.where(length > 0, self.radius / torch.where(length > 0, length, 1.0), 0.0)
        above = slopes(problem, support, plus(phi, vector, eps), outer)
        below = slopes(problem, support, plus(phi, vector, -eps), outer)
        half = length / (2 * self.radius)
        by_phi, by_outer = (
            {name: half * (slope - low[name]) for name, slope in high.items()}
            for high, low in zip(above, below, strict=True)
        )
        return by_phi, by_outer

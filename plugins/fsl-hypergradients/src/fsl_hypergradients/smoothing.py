"""The hypergradient `gaussian-smoothing`: second derivatives from gradients at random points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.calculus import (
    Flat,
    Weights,
    cut,
    derivatives,
    inner,
    plus,
    query_loss,
    slopes,
)
from fsl_hypergradients.draws import normal
from fsl_hypergradients.estimate import Estimate, changes


class _Place(NamedTuple):
    """Where a step begins: phi, and the inner loss there with its derivatives."""

    phi: Weights
    slope: Weights
    by_outer: Weights
    value: Tensor


@fsl.validated
class GaussianSmoothing(Estimate):
    """Backwards through the inner steps with a Hessian estimated from gradients alone.

        Hhat(phi) v = 1/U sum_j [grad l(phi + delta u_j) - grad l(phi)] / delta <u_j, v>
        g_T = grad L(phi_T),    g_k = g_{k+1} - a Hhat(phi_k) g_{k+1}

    u_1 .. u_U are standard normal, the same for the whole run by default: they are computed again
    from the seed whenever they are needed. The estimate has rank U at most and its variance grows
    with dim(phi) / U, so with few directions in a large net it is rough. It has no bias over the
    draw on quadratics; elsewhere the bias is O(delta^2), and O(delta) for directions that stay.
    Cost: (U + 1) T gradients; memory: T times phi.

    curvature value takes losses in place of gradients, two for each direction:
    [l(phi + delta u) + l(phi - delta u) - 2 l(phi)] / (2 delta^2) (u <u, v> - v); for phi alone.

    Steps without history only (plain SGD), which all move the same weights.

    Source: github.com/JunjieYang97/GGS-MAML-DL (GGS-MAML, of arXiv:2002.07836v1), U = 10. The
    variant by values is an interpretation.
    """

    name = "gaussian-smoothing"

    def __init__(
        self,
        directions: Annotated[int, Field(ge=1, description="U")] = 10,
        delta: Annotated[float, Field(gt=0, description="length of a step to each side")] = 1e-2,
        redraw: Annotated[
            Literal["never", "per-step"],
            Field(description="one set of directions for the run, or one for each inner step"),
        ] = "never",
        curvature: Annotated[
            Literal["gradient", "value"], Field(description="from gradients, or from losses")
        ] = "gradient",
        seed: Annotated[int, Field(ge=0, description="of the directions")] = 0,
    ):
        super().__init__()
        self.count, self.delta, self.redraw = directions, delta, redraw
        self.curvature, self.seed = curvature, seed

    def refusal(self, problem: fsl.InnerProblem) -> str:
        if changes(problem):
            return "inner steps move different weights. One `adapted` for all steps"
        if problem.by_autograd:
            return "inner steps with a history or by autograd. Plain SGD, engine: functional"
        if self.curvature == "value" and problem.outer:
            return (
                f"curvature: value gives no derivative by {next(iter(problem.outer))}, which no "
                "inner step moves. curvature: gradient"
            )
        return ""

    def directions(self, size: int, task: Tensor, k: int, like: Tensor) -> Tensor:
        """(U, size), those of inner step k of a task."""
        keys = (self.steps_done, task, k) if self.redraw == "per-step" else ()
        return normal(self.count * size, [self.seed, *keys], like).view(self.count, size)

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = self.problem(adapter, backbone, episode)
        outer, places = cut(problem.outer), []
        phi = cut(problem.start)
        for k in range(problem.steps):
            places.append(_place(problem, phi, outer, k))
            phi = cut(problem.step(phi, places[-1].slope, k, outer))
        query = query_loss(problem, episode, loss)
        (slope, to_outer), value, prediction = derivatives(problem, query, phi, outer)
        for k in reversed(range(problem.steps)):
            slope, more = self._back(problem, places.pop(), outer, slope, k, episode.id)
            to_outer = plus(to_outer, more)
        tensors, gradients = problem.outer | problem.start, to_outer | slope
        return fsl.with_gradient(value, tensors, gradients), prediction

    def _back(
        self,
        problem: fsl.InnerProblem,
        place: _Place,
        outer: Weights,
        slope: Weights,
        k: int,
        task: Tensor,
    ) -> tuple[Weights, Weights]:
        """The derivative by phi_{k+1}, pulled back to phi_k and outer."""

        def step(phi: Weights, gradient: Weights, outer: Weights) -> Tensor:
            return inner(slope, problem.step(phi, gradient, k, outer))

        to_phi, to_gradient, to_outer = slopes(problem, step, place.phi, place.slope, outer)
        flat = Flat(place.slope)
        vector = flat.pack(to_gradient)
        loss = _support(problem, k)
        for u in self.directions(flat.size, task, k, vector):
            share = (u @ vector) / self.count
            if self.curvature == "gradient":
                there = plus(place.phi, flat.unpack(u), self.delta)
                by_phi, by_outer = slopes(problem, loss, there, outer)
                scale = share / self.delta
                to_phi = plus(plus(to_phi, by_phi, scale), place.slope, -scale)
                to_outer = plus(plus(to_outer, by_outer, scale), place.by_outer, -scale)
            else:
                sides = (
                    plus(place.phi, flat.unpack(u), side) for side in (self.delta, -self.delta)
                )
                bend = sum(loss(side, outer) for side in sides) - 2 * place.value
                scale = bend / (2 * self.delta**2)
                to_phi = plus(to_phi, flat.unpack(share * u - vector / self.count), scale)
        return to_phi, to_outer


def _support(problem: fsl.InnerProblem, k: int) -> Callable[[Weights, Weights], Tensor]:
    return lambda phi, outer: problem.loss(phi, problem.at(outer, k))


def _place(problem: fsl.InnerProblem, phi: Weights, outer: Weights, k: int) -> _Place:
    loss = _support(problem, k)
    found = derivatives(problem, lambda *point: (loss(*point),) * 2, phi, outer)
    (slope, by_outer), value, _ = found
    return _Place(phi, {name: slope[name] for name in problem.moved(k)}, by_outer, value)

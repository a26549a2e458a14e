"""The hypergradient `sgld`: an inner distribution in place of an inner minimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.calculus import (
    Flat,
    Weights,
    cut,
    derivatives,
    plus,
    query_loss,
    slopes,
)
from fsl_hypergradients.draws import normal
from fsl_hypergradients.estimate import Estimate

CENTRE = "centre."
PROBE = 2.0**-20
"""Length of a gradient that no clipping shortens, to ask a step for its rate."""


@fsl.validated
class Sgld(Estimate):
    """The expected query loss under p(phi | theta) ~ exp(-energy), sampled by Langevin steps.

        energy = N / temperature * l(phi) + gamma / 2 ||phi - phi_0(theta)||^2
        phi <- phi - eps^2 / 2 * grad energy + eps * noise * z,    z standard normal

    l: the mean support loss, N: its items, gamma: maml's `proximal`, above 0. `steps` steps are
    made, and those after the first `burn_in` count. The value is their mean query loss.

    pathwise-first-order: mean of dL/dtheta + dL/dphi, the second derivatives of l left out: with
        the start phi_0 and the centre phi_0, d phi_k / d phi_0 is then 1.
    pathwise: derivatives through the whole chain, its noise held; memory grows with `steps`.
    covariance: E[dL/dtheta] - Cov(L, d energy / dtheta), exact for the stationary distribution and
        without any derivative of phi. Its variance grows with dim(phi): for small nets.

    At finite eps the chain samples another distribution: on a quadratic of curvature h the variance
    is 1 / (h (1 - eps^2 h / 4)), not 1 / h. z is a function of (seed, outer step, episode, chain,
    step). Evaluation runs the adapter; `predict` is of the prediction in training alone.

    Interpretation: after the abstract of arXiv:2410.10417 (stochastic bilevel optimisation), whose
    text was not available. The energy, the estimates' forms and every default are ours.
    """

    name = "sgld"

    def __init__(
        self,
        task: fsl.TaskShape,
        estimate: Annotated[
            Literal["pathwise-first-order", "pathwise", "covariance"],
            Field(description="how the gradient of the expectation is estimated"),
        ] = "pathwise-first-order",
        steps: Annotated[int, Field(ge=1, description="of a chain")] = 20,
        burn_in: Annotated[int, Field(ge=0, description="first steps that do not count")] = 10,
        eps: Annotated[
            float | None,
            Field(gt=0, description="of a step; null: sqrt(2 * the adapter's inner rate)"),
        ] = None,
        temperature: Annotated[float, Field(gt=0, description="of the support loss")] = 1.0,
        noise: Annotated[float, Field(ge=0, description="factor on z; 0: gradient steps")] = 1.0,
        chains: Annotated[int, Field(ge=1, description="chains of each task")] = 1,
        predict: Annotated[
            Literal["mean", "last"],
            Field(description="prediction shown in training: of all samples that count, or one"),
        ] = "mean",
        seed: Annotated[int, Field(ge=0, description="of the noise")] = 0,
    ):
        super().__init__()
        kept = (steps - burn_in) * chains
        if steps <= burn_in or (estimate == "covariance" and kept < 2):
            raise ValueError(
                f"steps: {steps} with burn_in: {burn_in}, so that {max(kept, 0)} samples count. "
                "More steps than burn_in; two samples for covariance"
            )
        self.classes, self.estimate = task.kind == "classification", estimate
        self.steps, self.burn_in, self.chains = steps, burn_in, chains
        self.eps, self.temperature, self.noise = eps, temperature, noise
        self.averaged, self.seed = predict == "mean", seed

    def refusal(self, problem: fsl.InnerProblem) -> str:
        if problem.proximal:
            return ""
        return "no proximal term keeps the chain near theta. maml with proximal above 0"

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = self.problem(adapter, backbone, episode)
        energy = self._energy(problem, len(episode.support.y))
        chains = [
            replace(
                problem,
                loss=energy,
                step=self._langevin(problem, episode.id, chain),
                steps=self.steps,
                at=lambda outer, k: outer | problem.at(outer, k),
            )
            for chain in range(self.chains)
        ]
        if self.estimate == "pathwise":
            return self._pathwise(chains, episode, loss)
        return self._from_samples(chains, episode, loss)

    def _pathwise(
        self, chains: list[fsl.InnerProblem], episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        found = [
            query_loss(chain, episode, loss)(point.phi, chain.outer)
            for chain in chains
            for point in self._counted(chain, tracked=True)
        ]
        values, predictions = zip(*found, strict=True)
        return torch.stack(values).mean(), self._shown(list(predictions))

    def _from_samples(
        self, chains: list[fsl.InnerProblem], episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = chains[0]
        query, means = query_loss(problem, episode, loss), _Means()
        predictions = []
        for chain in chains:
            for point in self._counted(chain, tracked=False):
                (by_phi, direct), value, prediction = derivatives(
                    problem, query, point.phi, problem.outer
                )
                if self.estimate == "covariance":
                    (of_energy,) = slopes(problem, _at(problem, point.phi), problem.outer)
                    means.add(value, direct, of_energy)
                else:
                    means.add(value, direct | by_phi)
                predictions.append(prediction)
        tensors = problem.outer | problem.start
        return fsl.with_gradient(means.value, tensors, means.gradient()), self._shown(predictions)

    def _counted(self, chain: fsl.InnerProblem, tracked: bool) -> Iterator[fsl.Point]:
        for k, point in enumerate(chain.points(tracked=tracked)):
            if k > self.burn_in:
                yield point

    def _energy(
        self, problem: fsl.InnerProblem, items: int
    ) -> Callable[[Weights, Weights], Tensor]:
        scale, gamma = items / self.temperature, problem.proximal

        def energy(phi: Weights, outer: Weights) -> Tensor:
            fit = {n: weight for n, weight in outer.items() if not n.startswith(CENTRE)}
            apart = [(weight - outer[CENTRE + n]).square().sum() for n, weight in phi.items()]
            return scale * problem.loss(phi, fit) + gamma / 2 * torch.stack(apart).sum()

        return energy

    def _langevin(
        self, problem: fsl.InnerProblem, task: Tensor, chain: int
    ) -> Callable[[Weights, Weights, int, Weights], Weights]:
        rates = self._rates(problem)

        def step(phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
            flat = Flat(gradient)
            keys = (self.seed, self.steps_done, task, chain, k)
            drawn = flat.unpack(normal(flat.size, keys, next(iter(gradient.values()))))
            moved = {
                n: phi[n] - rates[n] * g + self.noise * (2 * rates[n]).sqrt() * drawn[n]
                for n, g in gradient.items()
            }
            return phi | moved

        return step

    def _rates(self, problem: fsl.InnerProblem) -> Weights:
        """eps^2 / 2 of each weight; by default what the adapter's first step multiplies with."""
        start = cut(problem.start)
        if self.eps is not None:
            return {n: weight.new_tensor(self.eps**2 / 2) for n, weight in start.items()}
        here = {n: torch.zeros_like(weight) for n, weight in start.items()}
        down = {n: torch.full_like(weight, -PROBE) for n, weight in start.items()}
        outer = {n: w for n, w in cut(problem.outer).items() if not n.startswith(CENTRE)}
        moved = cut(problem.step(here, down, 0, outer))
        return {n: weight / PROBE for n, weight in moved.items()}

    def _shown(self, predictions: list[Tensor]) -> Tensor:
        if not self.averaged or len(predictions) == 1:
            return predictions[-1]
        stacked = torch.stack(predictions)
        if not self.classes:
            return stacked.mean(0)
        return stacked.log_softmax(-1).logsumexp(0) - torch.tensor(len(predictions)).log()


class _Means:
    """Running means of samples: memory for two gradients, however many samples there are."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor, direct: Weights, of_energy: Weights | None = None) -> None:
        """value: L.    direct: dL/dtheta.    of_energy: d energy / dtheta, for a covariance."""
        self.count += 1
        if self.count == 1:
            self.value, self.direct, self.of_energy = value, direct, of_energy
            self.products = {n: torch.zeros_like(d) for n, d in (of_energy or {}).items()}
            return
        before, share = self.value, 1 / self.count
        self.value = before + share * (value - before)
        self.direct = _towards(self.direct, direct, share)
        if of_energy is not None and self.of_energy is not None:
            # Welford's update: exact, and free of the size of the means.
            self.of_energy = _towards(self.of_energy, of_energy, share)
            apart = plus(of_energy, self.of_energy, -1.0)
            self.products = plus(self.products, apart, value - before)

    def gradient(self) -> Weights:
        """The mean of dL/dtheta, less the covariance of L and d energy / dtheta if there is one."""
        if self.of_energy is None:
            return self.direct
        return plus(self.direct, self.products, -1 / (self.count - 1))


def _towards(mean: Weights, sample: Weights, share: float) -> Weights:
    return {name: value + share * (sample[name] - value) for name, value in mean.items()}


def _at(problem: fsl.InnerProblem, phi: Weights) -> Callable[[Weights], Tensor]:
    """outer -> energy at phi."""
    return lambda outer: problem.loss(cut(phi), outer)

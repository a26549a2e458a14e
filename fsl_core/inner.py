"""An inner optimisation as a value, and the one loop that runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fsl_core.nn.arithmetic import without_autocast
from fsl_core.nn.forward import checkpointed
from fsl_core.nn.functional import Weights
from fsl_core.nn.transforms import transformed

Step = Callable[[Weights, Weights, int, Weights], Weights]
"""(phi, gradient, k, outer) -> the next phi."""


class Point(NamedTuple):
    """Where an inner optimisation stands.

    phi:   the fast weights.    outer: what losses and predictions with them read besides.
    """

    phi: Weights
    outer: Weights


def descend(
    phi: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    rate: float | Tensor | Mapping[str, float | Tensor],
) -> Weights:
    """phi - rate * gradient; weights without a gradient stay.

    rate: one number, a tensor that fits each weight, or one by name.

    >>> descend({"w": torch.ones(1), "b": torch.ones(1)}, {"w": torch.ones(1)}, 0.5)
    {'w': tensor([0.5000]), 'b': tensor([1.])}
    """
    rates = rate if isinstance(rate, Mapping) else dict.fromkeys(gradient, rate)
    return {**phi, **{name: phi[name] - rates[name] * slope for name, slope in gradient.items()}}


def _same_at_every_step(outer: Weights, k: int) -> Weights:
    return outer


def _nothing(fixed: Weights) -> Weights:
    return {}


@dataclass(frozen=True)
class InnerProblem:
    """What an adapter with inner steps optimises for one task, apart from who differentiates it.

    phi_0 = start;    phi_{k+1} = step(phi_k, d loss(phi_k, outer) / d phi_k, k, outer)

    start:   phi_0 by name, as functions of the meta-parameters: their graph is kept.
    outer:   by name, every meta-parameter that loss, step or predict reads besides phi: the
             backbone where the head alone moves, learned rates, the centre of a penalty.
    steps:   how many, in the adapter's present mode.
    loss:    (phi, outer) -> the support loss, a scalar. It reads tensors from its arguments alone,
             but for the data, so that it can be differentiated by either.
    step:    (phi, gradient, k, outer) -> the next phi. Steps are taken in order, and step 0 starts
             again: an optimizer's history is that of the steps since. A weight that has no gradient
             is absent from `gradient`.
    predict: (phi, outer, x) -> logits or values, (n, output_dim).

    What few problems need:

    schedule: the names that each step moves; steps beyond it move the last ones. Empty: all of phi.
    at:       (outer, k) -> outer as the loss of step k and predictions after it see it, such as
              norms of their own for each step. `outer` itself is what the last step sees.
    share:    (weights that a step does not move, and outer) -> what the loss computes from them
              alone, such as features of the support set where the head alone moves. The loss finds
              it in `outer`, and computes it itself where it is not there.
    by_autograd: gradients by torch.autograd in any case, for networks that torch.func refuses,
              such as those with layers that write statistics; one task at a time.
    proximal: gamma of a penalty gamma / 2 ||phi - c||^2 in the loss; 0: none. The weights of c are
              `centre.<name>` in `outer`, and without them the loss has no such penalty.
    curvature: what the penalties of the loss add to every eigenvalue of its second derivative by
              phi at least. Above 0, its minimiser is a function of `outer` wherever the rest of
              the loss is convex.
    """

    start: Weights
    outer: Weights
    steps: int
    loss: Callable[[Weights, Weights], Tensor]
    step: Step
    predict: Callable[[Weights, Weights, Tensor], Tensor]
    schedule: Sequence[Sequence[str]] = ()
    at: Callable[[Weights, int], Weights] = _same_at_every_step
    share: Callable[[Weights], Weights] = _nothing
    by_autograd: bool = False
    proximal: float = 0.0
    curvature: float = 0.0

    def moved(self, k: int) -> Sequence[str]:
        """The names that step k moves."""
        return self.schedule[min(k, len(self.schedule) - 1)] if self.schedule else list(self.start)

    def moving(self, names: Sequence[Collection[str]]) -> InnerProblem:
        """The same problem with as many steps as `names` has entries, each moving these alone.

        Of the names of each entry, those that the step would move anyway.
        """
        schedule = [
            [name for name in self.moved(k) if name in wanted] for k, wanted in enumerate(names)
        ]
        return replace(self, schedule=schedule, steps=len(schedule))

    def gradient(self, point: Point, k: int, create_graph: bool) -> Weights:
        """d loss / d phi at this point, of the names that step k moves.

        create_graph: it can be differentiated. Else it is a constant, and so is all it is made of.
        """
        names = self.moved(k)
        if not names:
            return {}
        phi, outer = point if create_graph else Point(*map(cut, point))
        # A second derivative needs the activations of the first pass, whatever the recipe says.
        # (Within torch.func nothing is computed again, and the compiler cannot enter this context.)
        with checkpointed(False) if create_graph and not transformed() else nullcontext():
            unmoved = {name: weight for name, weight in phi.items() if name not in names}
            outer = outer | self.share(outer | unmoved)
            # Outside of torch.func, autograd alone is faster: autograd functions, such as those of
            # `ConvBlock`, are unknown to torch.func.
            alone = self.by_autograd or not transformed()
            slope = self._by_autograd if alone else self._by_transform
            return slope(phi, outer, names, create_graph)

    def points(
        self, order: Literal[1, 2] = 2, tracked: bool = True, last: int | None = None
    ) -> Iterator[Point]:
        """phi_0 .. phi_steps, each with `outer` as predictions see it.

        order:   2: exact derivatives. 1: each gradient is a constant, d phi_{k+1} / d phi_k = 1
                 (but for what a step adds besides: learned rates keep their derivative).
        tracked: False: no graph at all; values are the same.
        last:    so many steps at the end are as `order` says, those before them as order 1.
        """
        first_exact = 0 if last is None else self.steps - last
        phi, outer = self.start, self.outer
        if not tracked:
            phi, outer = cut(phi), cut(outer)
        yield Point(phi, self.at(outer, 0))
        for k in range(self.steps):
            seen = self.at(outer, k)
            exact = tracked and order == 2 and k >= first_exact
            gradient = self.gradient(Point(phi, seen), k, create_graph=exact)
            with torch.set_grad_enabled(tracked):
                phi = self.step(phi, gradient, k, outer)
            phi = phi if tracked else cut(phi)
            yield Point(phi, seen)

    def predictor(self, point: Point) -> Callable[[Tensor], Tensor]:
        """The network with these fast weights."""
        return lambda x: self.predict(*point, x)

    def _by_transform(
        self, phi: Weights, outer: Weights, names: Sequence[str], create_graph: bool
    ) -> Weights:
        moved = {name: phi[name] for name in names}
        found = torch.func.grad(lambda moved: self.loss(phi | moved, outer))(moved)
        return found if create_graph else cut(found)

    def _by_autograd(
        self, phi: Weights, outer: Weights, names: Sequence[str], create_graph: bool
    ) -> Weights:
        with torch.enable_grad():
            moved = {name: _node(phi[name]) for name in names}
            loss = self.loss(phi | moved, outer)
            found: Sequence[Tensor | None] = [None] * len(names)
            if loss.requires_grad or self.by_autograd:
                with without_autocast(loss.device):
                    found = torch.autograd.grad(
                        loss, list(moved.values()), create_graph=create_graph, allow_unused=True
                    )
        if not self.by_autograd:  # as torch.func has it, which takes this one's place under vmap
            found = [
                torch.zeros_like(phi[name]) if slope is None else slope
                for name, slope in zip(names, found, strict=True)
            ]
        slopes = zip(names, found, strict=True)
        return {name: slope for name, slope in slopes if slope is not None}


def cut(weights: Mapping[str, Tensor]) -> Weights:
    """The same values without a graph."""
    return {name: weight.detach() for name, weight in weights.items()}


def _node(weight: Tensor) -> Tensor:
    """The same value as a node of its own.

    A weight that no step has moved yet is an ancestor of those that were moved, which are made from
    its gradient; the derivative of the loss must not go through them.
    """
    return weight.view_as(weight) if weight.requires_grad else weight.detach().requires_grad_()

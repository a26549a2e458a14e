"""The hypergradient `reptile`: towards the fast weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.calculus import Flat, Weights, cut, query_loss
from fsl_hypergradients.draws import permutation
from fsl_hypergradients.estimate import Estimate

DECAY, EPS = 0.999, 1e-8
"""Of the squares in Adam's memory, and what is added to their root."""


@dataclass
class _Adam:
    """Steps of Adam with beta1 = 0, from the squares of earlier steps.

    taken: how many those were.
    """

    flat: Flat
    rate: float
    squares: Tensor | float = 0.0
    taken: Tensor | int = 0

    def __call__(self, phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
        slopes = self.flat.pack({n: gradient.get(n, torch.zeros_like(w)) for n, w in phi.items()})
        self.squares = DECAY * self.squares + (1 - DECAY) * slopes.square()
        correction = (1 - DECAY ** (self.taken + k + 1)) ** 0.5
        step = self.rate * correction * slopes / (self.squares.sqrt() + EPS)
        return self.flat.unpack(self.flat.pack(phi) - step)


@fsl.validated
class Reptile(Estimate):
    """g = scale * (theta - phi_T), after T inner steps on all items of the episode.

    With outer SGD of step size e this is theta <- theta + e * scale * (mean phi_T - theta), so it
    asks for `optimizer: sgd` and `schedule: linear`. Nothing is differentiated but the inner
    losses. What no inner step moves cannot be trained: learned rates, a backbone where the head
    alone is adapted.

    Queries are trained on too, unless `data: support`; the loss that is shown is that of the
    queries all the same. `inner_batch` draws the items of each step without replacement, epoch by
    epoch, as a function of (seed, outer step, episode). Evaluation runs the adapter: its steps see
    the whole support set.

    `adam_lr` takes Adam with beta1 = 0 in place of the adapter's steps, as the code does.
    `inner_state: carry` keeps its squares: every task of a meta-batch begins with the mean of what
    the tasks of the outer step before ended with. The code hands them from task to task instead,
    and to its evaluation: with the mean, the order of tasks plays no part (interpretation).

    Source: Nichol et al. 2018, arXiv:1803.02999, and the code openai/supervised-reptile. There,
    Omniglot 5-way takes adam_lr 1e-3, inner_batch 10, 5 steps, 10 shots in training, meta-batches
    of 5, step size 1 going to 0 over 100,000 steps.
    """

    name = "reptile"
    squares: Tensor
    taken: Tensor

    def __init__(
        self,
        data: Annotated[
            Literal["all", "support"], Field(description="items that inner steps train on")
        ] = "all",
        inner_batch: Annotated[
            int | None, Field(ge=1, description="items of each inner step; null: all of them")
        ] = None,
        scale: Annotated[float, Field(gt=0, description="factor on theta - phi_T")] = 1.0,
        adam_lr: Annotated[
            float | None,
            Field(gt=0, description="rate of Adam with beta1 = 0; null: the adapter's steps"),
        ] = None,
        inner_state: Annotated[
            Literal["reset", "carry"],
            Field(description="whether Adam's memory goes on to later tasks; carry takes loop"),
        ] = "reset",
        seed: Annotated[int, Field(ge=0, description="of the inner batches")] = 0,
    ):
        super().__init__()
        self.carry = inner_state == "carry"
        if self.carry and adam_lr is None:
            raise ValueError(
                "inner_state: carry without adam_lr: the adapter's steps begin without history. "
                "adam_lr: 0.001, or inner_state: reset"
            )
        self.data, self.inner_batch, self.scale = data, inner_batch, scale
        self.adam_lr, self.seed = adam_lr, seed
        self.vectorizable = self.threadable = not self.carry
        self._ended: list[tuple[Tensor, int]] = []
        if self.carry:
            self.register_buffer("squares", torch.zeros(0))
            self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def unfit(self, adapter: fsl.Adapter) -> str:
        # order: 1 is as good as 2: no second derivative is taken.
        return adapter.unrolled_only()

    def refusal(self, problem: fsl.InnerProblem) -> str:
        moved = {id(weight) for weight in problem.start.values()}
        # Within torch.func no tensor tells; the trial before a run is not within it.
        left = [n for n, w in problem.outer.items() if w.requires_grad and id(w) not in moved]
        if not left:
            return ""
        return (
            f"{left[0]} is trained and no inner step moves it, so its gradient is undefined. "
            "With maml: adapted: all, learn_inner_lr: fixed"
        )

    def advice(self, optimizer: str, schedule: str) -> str:
        if optimizer == "sgd" and schedule == "linear":
            return ""
        return (
            "its step is theta + rate * (phi - theta) under optimizer sgd and schedule linear; "
            f"this recipe has {optimizer} and {schedule}"
        )

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        items = episode.support
        if self.data == "all":
            x, y = (torch.cat(pair) for pair in zip(items, episode.query, strict=True))
            items = fsl.LabelledSet(x, y)
        problem = self.problem(adapter, backbone, episode._replace(support=items))
        batches = self._batches(items, episode.id, problem.steps)

        def problem_of(k: int) -> fsl.InnerProblem:
            if self.inner_batch is None:
                return problem
            x, y = items.x[batches[k]], items.y[batches[k]]
            return fsl.inner_problem_of(
                adapter, backbone, episode._replace(support=fsl.LabelledSet(x, y))
            )

        phi, outer = cut(problem.start), cut(problem.outer)
        adam = None if self.adam_lr is None else self._adam(Flat(phi))
        step = adam or problem.step
        for k in range(problem.steps):
            seen = problem.at(outer, k)
            gradient = problem_of(k).gradient(fsl.Point(phi, seen), k, create_graph=False)
            with torch.no_grad():
                phi = cut(step(phi, gradient, k, outer))
        if self.carry and adam is not None and isinstance(adam.squares, Tensor):
            self._ended.append((adam.squares, problem.steps))
        with torch.no_grad():
            value, prediction = query_loss(problem, episode, loss)(phi, outer)
        away = {name: self.scale * (weight - phi[name]) for name, weight in problem.start.items()}
        return fsl.with_gradient(value, problem.start, away), prediction

    def _batches(self, items: fsl.LabelledSet, task: Tensor, steps: int) -> list[Tensor]:
        """The rows of each step, (inner_batch,) int64: whole epochs, one after the other."""
        if self.inner_batch is None:
            return []
        size, count = self.inner_batch, len(items.y)
        keys, device = (self.seed, self.steps_done, task), items.x.device
        epochs = -(-steps * size // count)
        drawn = [permutation(count, [*keys, epoch], device) for epoch in range(epochs)]
        return list(torch.cat(drawn)[: steps * size].split(size)) if drawn else []

    def _adam(self, flat: Flat) -> _Adam:
        kept = self.carry and len(self.squares) == flat.size
        assert self.adam_lr is not None  # it is asked for with a rate alone
        if not kept:
            return _Adam(flat, self.adam_lr)
        return _Adam(flat, self.adam_lr, self.squares, self.taken)

    def on_step(self, ids: Tensor) -> None:
        super().on_step(ids)
        if self._ended:
            squares, steps = zip(*self._ended, strict=True)
            self.squares = torch.stack(squares).mean(0).to(self.squares)
            self.taken += steps[0]
            self._ended.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The size of phi is known at the first step only; a checkpoint knows it.
        if self.carry and (kept := state_dict.get(f"{prefix}squares")) is not None:
            self.squares = self.squares.new_zeros(kept.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)

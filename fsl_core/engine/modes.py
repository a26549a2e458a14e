"""The modes of an execution: how a meta-batch becomes gradients.

Each mode computes the weighted sum of the tasks' gradients, or the gradient of each task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.func import grad as function_gradient

from fsl_core.engine.environment import use_private_kernels
from fsl_core.engine.execution import Execution
from fsl_core.engine.workers import Workers, add_up
from fsl_core.episode import Episode, Loss
from fsl_core.learner import Learner
from fsl_core.nn.attention import plain_attention
from fsl_core.nn.forward import checkpointed

T = TypeVar("T")
Gradients = list[Tensor | None]
"""One for each trained parameter of the learner, in their order; None if no gradient reaches it."""


class Tasks(NamedTuple):
    """losses: (tasks,), and predictions: (tasks, n_queries, output_dim), both detached."""

    losses: Tensor
    predictions: Tensor


class Mode(Protocol):
    """One way to compute a meta-batch."""

    def summed(self, episodes: Episode, weights: Tensor) -> tuple[Tasks, Gradients]:
        """sum_i weights[i] * gradient of task i."""
        ...

    def each(self, episodes: Episode) -> tuple[Tasks, Tensor]:
        """The tasks' gradients as one (tasks, P) matrix; zero if no gradient reaches."""
        ...


def trained(learner: Learner) -> list[nn.Parameter]:
    """The parameters that the outer loop moves, in the learner's order."""
    return [parameter for parameter in learner.parameters() if parameter.requires_grad]


def make_mode(learner: Learner, loss: Loss, execution: Execution) -> Mode:
    """The mode that an execution names, for one learner."""
    if execution.mode == "loop":
        return Loop(learner, loss, execution)
    return (Compiled if execution.mode == "compiled" else Vmap)(learner, loss, execution)


class Loop:
    """One task after another, or as many at a time as there are workers.

    The sum is taken in the order of the tasks, so that the bits of the result do not depend on
    which worker is done first.
    """

    def __init__(self, learner: Learner, loss: Loss, execution: Execution):
        self.loss, self.execution = loss, execution
        self.parameters, self.workers = trained(learner), Workers(learner, execution.workers)

    def summed(self, episodes: Episode, weights: Tensor) -> tuple[Tasks, Gradients]:
        def work(
            learner: Learner, task: tuple[Episode, Tensor]
        ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
            episode, weight = task
            value, prediction = self._objective(learner, episode)
            gradients = torch.autograd.grad(weight * value, self.parameters, allow_unused=True)
            return value.detach(), prediction.detach(), gradients

        total: Gradients = [None] * len(self.parameters)
        outcomes = []
        tasks = zip(episodes.unbatch(), weights.detach(), strict=True)
        # Each task's graph is freed before the next one is computed: memory for one, not for all.
        for value, prediction, gradients in self.workers.map(work, tasks):
            total = add_up(total, gradients)
            outcomes.append((value, prediction))
        return _stacked(outcomes), total

    def each(self, episodes: Episode) -> tuple[Tasks, Tensor]:
        def work(learner: Learner, episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
            value, prediction = self._objective(learner, episode)
            gradients = torch.autograd.grad(
                value, self.parameters, allow_unused=True, materialize_grads=True
            )
            row = torch.cat([gradient.reshape(-1) for gradient in gradients])
            return value.detach(), prediction.detach(), row

        rows, outcomes = [], []
        for value, prediction, row in self.workers.map(work, episodes.unbatch()):
            rows.append(row)
            outcomes.append((value, prediction))
        return _stacked(outcomes), torch.stack(rows)

    def _objective(self, learner: Learner, episode: Episode) -> tuple[Tensor, Tensor]:
        with _autocast(self.execution, episode), checkpointed(self.execution.checkpoint_gradients):
            return learner.objective(episode, self.loss)


class Vmap:
    """All tasks, or a chunk of them, as one batched computation.

    torch.func differentiates functions of tensors, not modules. So the learner becomes a function
    of its trained parameters, which `functional_call` puts in place for the time of a call.
    """

    def __init__(self, learner: Learner, loss: Loss, execution: Execution):
        self.parameters, self.execution = trained(learner), execution
        named = learner.named_parameters()
        names = [f"learner.{name}" for name, parameter in named if parameter.requires_grad]
        objective = _Objective(learner, loss)

        def batched(function: Callable[..., T]) -> Callable[..., T]:
            # Every task draws its own random numbers, such as those of dropout.
            return vmap(function, (None, 0), randomness="different")

        def task(
            parameters: Sequence[Tensor], episode: Episode
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            weights = dict(zip(names, parameters, strict=True))
            with _autocast(execution, episode):
                value, prediction = functional_call(objective, weights, (episode,))
            return value, (value, prediction)

        def total(
            parameters: Sequence[Tensor], episodes: Episode, weights: Tensor
        ) -> tuple[Tensor, Tasks]:
            values, aux = batched(task)(parameters, episodes)
            return (weights * values).sum(), Tasks(*aux)

        # The sum is the gradient of a weighted sum: one backward pass for all tasks, whose batched
        # operations add up over tasks. A gradient for each task needs the other order.
        self._summed: Callable[..., tuple[list[Tensor], Tasks]]
        self._summed = function_gradient(total, has_aux=True)
        self._each: Callable[..., tuple[list[Tensor], tuple[Tensor, Tensor]]]
        self._each = batched(function_gradient(task, has_aux=True))

    def summed(self, episodes: Episode, weights: Tensor) -> tuple[Tasks, Gradients]:
        total: Gradients = [None] * len(self.parameters)
        outcomes = []
        for chunk, its_weights in zip(self._chunks(episodes), self._split(weights), strict=True):
            gradients, tasks = self._summed(self._constants(), chunk, its_weights)
            total = add_up(total, gradients)
            outcomes.append(tasks)
        return _joined(outcomes), total

    def each(self, episodes: Episode) -> tuple[Tasks, Tensor]:
        rows, outcomes = [], []
        for chunk in self._chunks(episodes):
            gradients, aux = self._each(self._constants(), chunk)
            columns = [gradient.reshape(len(gradient), -1) for gradient in gradients]
            rows.append(torch.cat(columns, dim=1))
            outcomes.append(Tasks(*aux))
        return _joined(outcomes), torch.cat(rows) if len(rows) > 1 else rows[0]

    def _constants(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def _split(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.split(self.execution.chunk or len(tensor))

    def _chunks(self, episodes: Episode) -> Iterator[Episode]:
        if self.execution.chunk is None or self.execution.chunk >= len(episodes.id):
            yield episodes
            return
        (support_x, support_y), (query_x, query_y), ids = episodes
        columns = (self._split(tensor) for tensor in (support_x, support_y, query_x, query_y, ids))
        for sx, sy, qx, qy, i in zip(*columns, strict=True):
            yield Episode(type(episodes.support)(sx, sy), type(episodes.query)(qx, qy), i)


class Compiled(Vmap):
    """The batched computation through torch.compile.

    Compiled code is kept between runs in the cache folder of fsl-core.
    """

    def __init__(self, learner: Learner, loss: Loss, execution: Execution):
        super().__init__(learner, loss, execution)
        # torch runs what it finds in its folder of kernels, so before anything is compiled we make
        # sure that nobody else can write there.
        use_private_kernels()
        self._summed = torch.compile(self._summed, fullgraph=True, dynamic=False)
        self._each = torch.compile(self._each, fullgraph=True, dynamic=False)

    def summed(self, episodes: Episode, weights: Tensor) -> tuple[Tasks, Gradients]:
        with plain_attention():  # around the compiler, which cannot trace this context
            return super().summed(episodes, weights)

    def each(self, episodes: Episode) -> tuple[Tasks, Tensor]:
        with plain_attention():
            return super().each(episodes)


class _Objective(nn.Module):
    """A learner's objective as a module's forward pass, for stateless calls."""

    def __init__(self, learner: Learner, loss: Loss):
        super().__init__()
        self.learner, self.loss = learner, loss

    def forward(self, episode: Episode) -> tuple[Tensor, Tensor]:
        return self.learner.objective(episode, self.loss)


def _autocast(execution: Execution, episode: Episode) -> AbstractContextManager[object]:
    if execution.precision == "float32":
        return nullcontext()
    return torch.autocast(episode.support.x.device.type, dtype=torch.bfloat16)


def _stacked(outcomes: Sequence[tuple[Tensor, Tensor]]) -> Tasks:
    losses, predictions = zip(*outcomes, strict=True)
    return Tasks(torch.stack(losses), torch.stack(predictions))


def _joined(outcomes: Sequence[Tasks]) -> Tasks:
    if len(outcomes) == 1:
        return outcomes[0]
    losses, predictions = zip(*outcomes, strict=True)
    return Tasks(torch.cat(losses), torch.cat(predictions))

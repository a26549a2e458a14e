"""The modes of an execution: how a meta-batch becomes gradients.

Each mode gives the terms of the weighted sum of the tasks' gradients, or the gradient of each task.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.func import grad as function_gradient
from torch.utils._pytree import tree_map

from fsl_core.data.groups import Group, in_order, unbatch
from fsl_core.engine.environment import use_private_kernels
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.workers import Workers
from fsl_core.episode import Episode, Loss
from fsl_core.errors import RunError
from fsl_core.learner import Learner
from fsl_core.nn.attention import plain_attention
from fsl_core.nn.forward import checkpointed

T = TypeVar("T")
Groups = Sequence[Group]
Gradients = list[Tensor | None]
"""One for each trained parameter of the learner, in their order; None if no gradient reaches it."""
Add = Callable[[Sequence[Tensor | None]], None]
"""Takes a term of the meta-gradient; the sum is taken in the order of the calls."""
Seed = Callable[[int], None]
"""Sets the random numbers of the task at a place of the batch."""

_FEW_TASKS = 8
"""To take fewer at a time costs more in calls than it saves in memory."""

_IN_CACHE = 4 << 20
"""Bytes of weights of the tasks' own, of which a task holds several sets and its maps beside."""


def at_a_time(execution: Execution, tasks: int, parameters: Sequence[Tensor]) -> int:
    """How many of these tasks `vmap` or `compiled` batches together.

    Where a recipe names no chunk, compiled code on a CPU takes parts that stay in its cache. They
    are of one size, because each size is compiled by itself.

    parameters: the trained ones of the learner.
    """
    if execution.chunk:
        return min(execution.chunk, tasks)
    if execution.mode != "compiled" or parameters[0].is_cuda:
        return tasks
    most = max(_FEW_TASKS, _IN_CACHE // sum(parameter.nbytes for parameter in parameters))
    sizes = [size for size in range(_FEW_TASKS, tasks + 1) if tasks % size == 0]
    return max((size for size in sizes if size <= most), default=tasks)


class Tasks(NamedTuple):
    """What tasks came to, in the order of the batch; detached.

    losses: (tasks,).
    predictions: (tasks, n_queries, output_dim), or, if they are of several shapes, one
        (n_queries, output_dim) for each task.
    """

    losses: Tensor
    predictions: Tensor | tuple[Tensor, ...]


class Mode(Protocol):
    """One way to compute a meta-batch."""

    def summed(self, groups: Groups, weights: Tensor, add: Add, seed: Seed) -> Tasks:
        """Calls `add` with the terms of sum_i weights[i] * gradient of task i, in their order."""
        ...

    def each(self, groups: Groups, seed: Seed) -> tuple[Tasks, Tensor]:
        """The tasks' gradients as one (tasks, P) matrix; zero if no gradient reaches."""
        ...


def trained(learner: Learner) -> list[nn.Parameter]:
    """The parameters that the outer loop moves, in the learner's order."""
    return [parameter for parameter in learner.parameters() if parameter.requires_grad]


def make_mode(fitted: Fitting, loss: Loss, execution: Execution, processes: int = 1) -> Mode:
    """The mode that an execution names, for one learner and one of as many processes."""
    if execution.precision == "bf16":
        loss = _of_singles(loss)
    if execution.mode == "loop":
        return Loop(fitted, loss, execution, processes)
    return (Compiled if execution.mode == "compiled" else Vmap)(fitted, loss, execution)


class Loop:
    """One task after another, or as many at a time as there are workers; processes share these.

    Terms come in the order of the tasks, so that the bits of the result do not depend on which
    worker is done first. Each task draws random numbers of its own, so they do not depend on which
    tasks the same process computed before.
    """

    def __init__(self, fitted: Fitting, loss: Loss, execution: Execution, processes: int = 1):
        self.fitted, self.loss, self.execution = fitted, loss, execution
        self.parameters = trained(fitted.learner)
        self.workers = Workers(fitted.learner, execution.workers, processes)

    def summed(self, groups: Groups, weights: Tensor, add: Add, seed: Seed) -> Tasks:
        def work(
            learner: Learner, task: tuple[tuple[int, Episode], Tensor]
        ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
            placed, weight = task
            value, prediction = self._objective(learner, placed, seed)
            gradients = torch.autograd.grad(weight * value, self.parameters, allow_unused=True)
            return value.detach(), prediction.detach(), gradients

        outcomes = []
        learners, episodes = self._tasks(groups)
        tasks = zip(episodes, weights.detach(), strict=True)
        # Each task's graph is freed before the next one is computed: memory for one, not for all.
        for value, prediction, gradients in self.workers.map(work, tasks, learners):
            add(gradients)
            outcomes.append((value, prediction))
        return _stacked(groups, outcomes)

    def each(self, groups: Groups, seed: Seed) -> tuple[Tasks, Tensor]:
        def work(learner: Learner, placed: tuple[int, Episode]) -> tuple[Tensor, Tensor, Tensor]:
            value, prediction = self._objective(learner, placed, seed)
            gradients = torch.autograd.grad(
                value, self.parameters, allow_unused=True, materialize_grads=True
            )
            row = torch.cat([gradient.reshape(-1) for gradient in gradients])
            return value.detach(), prediction.detach(), row

        rows, outcomes = [], []
        learners, episodes = self._tasks(groups)
        for value, prediction, row in self.workers.map(work, episodes, learners):
            rows.append(row)
            outcomes.append((value, prediction))
        return _stacked(groups, outcomes), torch.stack(rows)

    def _tasks(self, groups: Groups) -> tuple[Iterator[Learner], list[tuple[int, Episode]]]:
        """Each task's learner, and its episode with its place, in the order of the batch."""
        tasks = unbatch(groups)
        placed = list(enumerate(episode for _, episode in tasks))
        return (self.fitted(shape) for shape, _ in tasks), placed

    def _objective(
        self, learner: Learner, placed: tuple[int, Episode], seed: Seed
    ) -> tuple[Tensor, Tensor]:
        place, episode = placed
        if self.execution.workers == 1:  # threads share one generator, and no task of theirs draws
            seed(place)
        with _autocast(self.execution, episode), checkpointed(self.execution.checkpoint_gradients):
            value, prediction = learner.objective(episode, self.loss)
        return value, _single(prediction)


class _Batched:
    """One learner's objective as functions of its trained parameters, for many tasks at a time.

    torch.func differentiates functions of tensors, not modules. So the learner becomes a function
    of its trained parameters, which `functional_call` puts in place for the time of a call.

    summed: (parameters, episodes, weights) -> gradients of the weighted sum, tasks.
    each:   (parameters, episodes) -> gradients of each task, (losses, predictions).
    """

    summed: Callable[..., tuple[list[Tensor], Tasks]]
    each: Callable[..., tuple[list[Tensor], tuple[Tensor, Tensor]]]

    def __init__(self, learner: Learner, loss: Loss, execution: Execution):
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
            return value, (value, _single(prediction))

        def total(
            parameters: Sequence[Tensor], episodes: Episode, weights: Tensor
        ) -> tuple[Tensor, Tasks]:
            values, aux = batched(task)(parameters, episodes)
            return (weights * values).sum(), Tasks(*aux)

        # The sum is the gradient of a weighted sum: one backward pass for all tasks, whose batched
        # operations add up over tasks. A gradient for each task needs the other order.
        self.summed = function_gradient(total, has_aux=True)
        self.each = batched(function_gradient(task, has_aux=True))


class Vmap:
    """All tasks of one shape, or a chunk of them, as one batched computation."""

    def __init__(self, fitted: Fitting, loss: Loss, execution: Execution):
        self.fitted, self.loss, self.execution = fitted, loss, execution
        self.parameters = trained(fitted.learner)
        self._of_learners: dict[int, _Batched] = {}

    def summed(self, groups: Groups, weights: Tensor, add: Add, seed: Seed) -> Tasks:
        outcomes = []
        for group in groups:
            batched, parts = self._batched(group), []
            own = weights if len(groups) == 1 else weights[list(group.places)]
            for chunk, its_weights in zip(
                self._chunks(group.episodes), self._split(own), strict=True
            ):
                gradients, tasks = batched.summed(self._constants(), chunk, its_weights)
                add(gradients)
                parts.append(tasks)
            outcomes.append(_joined(parts))
        return _placed(groups, outcomes)

    def each(self, groups: Groups, seed: Seed) -> tuple[Tasks, Tensor]:
        rows, outcomes = [], []
        for group in groups:
            batched, parts = self._batched(group), []
            for chunk in self._chunks(group.episodes):
                gradients, aux = batched.each(self._constants(), chunk)
                columns = [gradient.reshape(len(gradient), -1) for gradient in gradients]
                rows.append(torch.cat(columns, dim=1))
                parts.append(Tasks(*aux))
            outcomes.append(_joined(parts))
        matrix = torch.cat(rows) if len(rows) > 1 else rows[0]
        return _placed(groups, outcomes), matrix if len(groups) == 1 else matrix[_order(groups)]

    def _batched(self, group: Group) -> _Batched:
        learner = self.fitted(group.task)
        if id(learner) not in self._of_learners:
            self._of_learners[id(learner)] = self._make(learner)
        return self._of_learners[id(learner)]

    def _make(self, learner: Learner) -> _Batched:
        return _Batched(learner, self.loss, self.execution)

    def _constants(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def _split(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.split(self._at_a_time(len(tensor)))

    def _at_a_time(self, tasks: int) -> int:
        return at_a_time(self.execution, tasks, self.parameters)

    def _chunks(self, episodes: Episode) -> Iterator[Episode]:
        if self._at_a_time(len(episodes.id)) == len(episodes.id):
            yield episodes
            return
        (support_x, support_y), (query_x, query_y), ids = episodes
        columns = (self._split(tensor) for tensor in (support_x, support_y, query_x, query_y, ids))
        for sx, sy, qx, qy, i in zip(*columns, strict=True):
            yield Episode(type(episodes.support)(sx, sy), type(episodes.query)(qx, qy), i)


class Compiled(Vmap):
    """The batched computation through torch.compile, once for each shape.

    Compiled code is kept between runs in the cache folder of fsl-core. On a GPU its kernels are
    recorded as a CUDA graph and played again: to start them one by one takes longer than they do.
    """

    def __init__(self, fitted: Fitting, loss: Loss, execution: Execution):
        super().__init__(fitted, loss, execution)
        # torch runs what it finds in its folder of kernels, so before anything is compiled we make
        # sure that nobody else can write there.
        use_private_kernels()

    def _make(self, learner: Learner) -> _Batched:
        batched = super()._make(learner)
        on_gpu = self.parameters[0].is_cuda
        batched.summed = _compiled(batched.summed, on_gpu)
        batched.each = _compiled(batched.each, on_gpu)
        return batched

    def summed(self, groups: Groups, weights: Tensor, add: Add, seed: Seed) -> Tasks:
        with plain_attention():  # around the compiler, which cannot trace this context
            return super().summed(groups, weights, add, seed)

    def each(self, groups: Groups, seed: Seed) -> tuple[Tasks, Tensor]:
        with plain_attention():
            return super().each(groups, seed)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without what torch says when it compiles for a GPU: to round, which is ours to decide."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*(TensorFloat32 tensor cores|Online softmax)")
        yield


_MANY_VARIANTS = (
    "execution compiled: tasks are computed in a new way at every step, and torch stopped after "
    "eight. execution.mode: vmap; numbers that change in training as tensors, in buffers"
)


def _compiled(function: Callable[..., T], on_gpu: bool) -> Callable[..., T]:
    """Compiled apart from every other learner's function.

    torch keeps what it compiled by code object, looks through all of it at each call, and gives up
    after eight variants. Every learner's gradient comes from one line of torch.func, so the ninth
    compiled run of a process, or the ninth shape of episodes, would end there.
    """

    def apart(*arguments: object) -> T:
        return function(*arguments)

    own = FunctionType(apart.__code__.replace(), globals(), "apart", None, apart.__closure__)
    mode = "reduce-overhead" if on_gpu else None
    compiled = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
    begins = on_gpu

    def told(*arguments: object) -> T:
        nonlocal begins
        try:
            with _without_advice() if begins else nullcontext():
                found = compiled(*arguments)
        except Exception as error:  # its class has no public name
            if type(error).__name__ == "FailOnRecompileLimitHit":
                raise RunError(_MANY_VARIANTS) from error
            raise
        begins = False
        # On a GPU the next call writes its results to the same places.
        return cast(T, tree_map(torch.clone, found) if on_gpu else found)

    return told


class _Objective(nn.Module):
    """A learner's objective as a module's forward pass, for stateless calls."""

    def __init__(self, learner: Learner, loss: Loss):
        super().__init__()
        self.learner, self.loss = learner, loss

    def forward(self, episode: Episode) -> tuple[Tensor, Tensor]:
        return self.learner.objective(episode, self.loss)


def _of_singles(loss: Loss) -> Loss:
    """The loss of predictions in float32, whatever autocast made of them."""
    return lambda prediction, target: loss(_single(prediction), target)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _autocast(execution: Execution, episode: Episode) -> AbstractContextManager[object]:
    if execution.precision != "bf16":
        return nullcontext()
    return torch.autocast(episode.support.x.device.type, dtype=torch.bfloat16)


def _stacked(groups: Groups, outcomes: Sequence[tuple[Tensor, Tensor]]) -> Tasks:
    losses, predictions = zip(*outcomes, strict=True)
    alike = len(groups) == 1
    return Tasks(torch.stack(losses), torch.stack(predictions) if alike else predictions)


def _joined(outcomes: Sequence[Tasks]) -> Tasks:
    """The chunks of one group."""
    if len(outcomes) == 1:
        return outcomes[0]
    losses, predictions = zip(*outcomes, strict=True)
    return Tasks(torch.cat(losses), torch.cat(predictions))


def _placed(groups: Groups, outcomes: Sequence[Tasks]) -> Tasks:
    """What groups came to, in the order of the batch."""
    if len(groups) == 1:
        return outcomes[0]
    losses = torch.cat([tasks.losses for tasks in outcomes])[_order(groups)]
    return Tasks(losses, tuple(in_order(groups, (tasks.predictions for tasks in outcomes))))


def _order(groups: Groups) -> list[int]:
    """For each place of the batch, the row that its episode has where groups are put together."""
    rows = enumerate(place for group in groups for place in group.places)
    return [row for row, _ in sorted(rows, key=lambda pair: pair[1])]

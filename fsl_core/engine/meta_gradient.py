"""The meta-gradient of a meta-batch: sum_i weights[i] * grad loss_i."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsl_core.data.groups import Group, as_groups, ids_of
from fsl_core.data.seeding import draws_of_tasks
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.engine.modes import Seed, Tasks, make_mode, trained
from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.engine.total import Total
from fsl_core.episode import Episode, Loss
from fsl_core.learner import Learner
from fsl_core.nn.arithmetic import arithmetic
from fsl_core.weighting import Outcomes, TaskWeighting

Aside = Callable[[Tasks], Any]
"""What a rank tells the others of its own tasks together with their losses; plain data."""


class MetaBatchResult(NamedTuple):
    """What one meta-batch gave.

    The meta-gradient itself is in `.grad` of the learner's (and the weighting's) parameters.

    losses:      (meta_batch_size,) objectives, detached.
    predictions: (meta_batch_size, n_queries, output_dim), detached; if the episodes are of several
                 shapes, one (n_queries, output_dim) for each. Those of this rank's tasks alone.
    weights:     (meta_batch_size,), detached.
    gradients:   (meta_batch_size, P) meta-gradients of the tasks, or None if nobody asked for them.
    said:        what each rank told aside.
    """

    losses: Tensor
    predictions: Tensor | tuple[Tensor, ...]
    weights: Tensor
    gradients: Tensor | None = None
    said: Sequence[Any] = ()


class _Computed(NamedTuple):
    """Losses of all tasks and predictions of this rank's; then what each rank told.

    counts: of its tasks.    reached: which parameters their gradients reached.    said: aside.
    """

    losses: Tensor
    predictions: Tensor | tuple[Tensor, ...]
    counts: list[int]
    reached: list[list[bool]]
    said: list[Any]


class MetaGradient:
    """Computes meta-batches of one learner by one `Execution`.

    What is trained is settled here: the parameters that require gradients now.

    The tasks' gradients are added up in the order of the tasks. If the weights depend on nothing,
    no task's gradient is kept. Otherwise they are kept as one (meta_batch_size, P) matrix, as
    `TaskWeighting.weigh` sees it.

    learner: or the rule that finds the one for each shape of episodes.
    loss: (prediction, labels) -> scalar.
    ranks: the processes that share the tasks of a meta-batch. They tell each other losses and one
        sum of gradients; all gradients, if somebody looks at them.
    """

    def __init__(
        self,
        learner: Learner | Fitting,
        weighting: TaskWeighting,
        loss: Loss,
        execution: Execution = Execution(),
        ranks: Ranks = ALONE,
    ):
        self.weighting, self.execution, self.ranks = weighting, execution, ranks
        fitted = as_fitting(learner)
        self._trained, self._weightings_own = trained(fitted.learner), [*weighting.parameters()]
        self._mode = make_mode(fitted, loss, execution, ranks.count)

    def __call__(
        self,
        batch: Episode | Sequence[Group],
        keep_gradients: bool = False,
        ids: Tensor | None = None,
        aside: Aside = lambda tasks: None,
    ) -> MetaBatchResult:
        """Compute a batch of episodes and set `.grad`; gradients already there are dropped.

        Where no gradient reaches it is zero and not None, so that an optimizer, which passes over
        None, takes the same step whatever computed the batch.

        batch: groups of one shape each; or episodes of the shape that the learner is for, where
            every tensor has a leading (meta_batch_size,) axis. Those of this rank, `ranks.part`.
        ids:   of the whole meta-batch; None: this process computes all of it.
        aside: is asked once this rank's tasks are computed.
        """
        groups = as_groups(batch)
        ids = ids_of(groups) if ids is None else ids
        for parameter in self._weightings_own:
            parameter.grad = None
        with arithmetic(self._trained[0].device, self.execution.precision == "tf32"):
            if self.weighting.needs or keep_gradients:
                return self._weigh_gradients(groups, ids, keep_gradients, aside)
            return self._weigh_beforehand(groups, ids, aside)

    def _weigh_beforehand(
        self, groups: Sequence[Group], ids: Tensor, aside: Aside
    ) -> MetaBatchResult:
        unknown = self._trained[0].new_zeros(len(ids))
        weights = self.weighting.weigh(Outcomes(unknown, None, ids)).detach().to(unknown)
        own, total = self._own(weights), Total(self.ranks, self._trained)

        def work(seed: Seed) -> Tasks:
            return self._mode.summed(groups, own, total.add, seed) if groups else self._nothing()

        found = self._computed(work, len(ids), aside, lambda: total.reached)
        gradients = total.of_all(found.reached, self._holders(ids))
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            reached = torch.zeros_like(parameter) if gradient is None else gradient
            parameter.grad = reached.view_as(parameter)
        return MetaBatchResult(found.losses, found.predictions, weights, None, found.said)

    def _weigh_gradients(
        self, groups: Sequence[Group], ids: Tensor, keep: bool, aside: Aside
    ) -> MetaBatchResult:
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._trained])
        matrix = flat.new_zeros(0, len(flat))

        def work(seed: Seed) -> Tasks:
            nonlocal matrix
            tasks, matrix = self._mode.each(groups, seed) if groups else (self._nothing(), matrix)
            return tasks

        found = self._computed(work, len(ids), aside, lambda: [True])
        wanted = keep or "gradients" in self.weighting.needs
        if wanted and not self.ranks.alone:
            matrix = self.ranks.rows(matrix, found.counts)
        weights = self._weigh(found.losses, matrix, ids)
        # What every rank has in full it adds up by itself.
        total = Total(ALONE if wanted else self.ranks, [flat])
        for weight, row in zip(weights if wanted else self._own(weights), matrix, strict=True):
            total.add([weight * row])
        (gradient,) = total.of_all(found.reached, self._holders(ids))
        assert gradient is not None  # a meta-batch has a task
        sizes = [parameter.numel() for parameter in self._trained]
        for parameter, piece in zip(self._trained, gradient.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        kept = matrix if keep else None
        return MetaBatchResult(found.losses, found.predictions, weights, kept, found.said)

    def _weigh(self, losses: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
        seen = matrix if "gradients" in self.weighting.needs else None
        outcomes = Outcomes(losses, seen, ids)
        weights = self.weighting.weigh(outcomes)
        if weights.requires_grad:
            # It reaches the weighting's own parameters alone, because outcomes are detached.
            self.weighting.objective(weights, outcomes).backward()
        return weights.detach()

    def _computed(
        self,
        work: Callable[[Seed], Tasks],
        count: int,
        aside: Aside,
        reached: Callable[[], list[bool]],
    ) -> _Computed:
        """This rank's tasks, by `work`, and what all ranks tell of theirs."""
        done: list[Tasks] = []

        def tell() -> dict[str, Any]:
            tasks = work(seed)
            done.append(tasks)
            # A number of Python holds each of torch's floats exactly.
            losses = [] if self.ranks.alone else tasks.losses.tolist()
            dtype = str(tasks.losses.dtype).removeprefix("torch.")
            said = {"losses": losses, "dtype": dtype, "said": aside(tasks)}
            return {**said, "reached": reached(), "count": len(tasks.losses)}

        with draws_of_tasks(self.ranks.part(count).start) as seed:
            told = self.ranks.gather(tell)
        losses, predictions = done[0]
        if not self.ranks.alone:
            numbers = [number for each in told for number in each["losses"]]
            losses = losses.new_tensor(numbers, dtype=getattr(torch, told[0]["dtype"]))
        columns = ([each[key] for each in told] for key in ("count", "reached", "said"))
        return _Computed(losses, predictions, *columns)

    def _own(self, of_all: Tensor) -> Tensor:
        part = self.ranks.part(len(of_all))
        return of_all[part.start : part.stop]

    def _holders(self, ids: Tensor) -> int:
        return min(self.ranks.count, len(ids))

    def _nothing(self) -> Tasks:
        return Tasks(self._trained[0].new_zeros(0), ())


def meta_gradient(
    learner: Learner | Fitting,
    weighting: TaskWeighting,
    batch: Episode | Sequence[Group],
    loss: Loss,
    execution: Execution = Execution(),
) -> MetaBatchResult:
    """One meta-batch by a `MetaGradient` of its own; if there are many, keep one."""
    return MetaGradient(learner, weighting, loss, execution)(batch)

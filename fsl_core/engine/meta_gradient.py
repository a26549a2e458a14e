"""The meta-gradient of a meta-batch: sum_i weights[i] * grad loss_i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fsl_core.data.groups import Group, as_groups, ids_of
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.engine.modes import Gradients, Tasks, make_mode, trained
from fsl_core.episode import Episode, Loss
from fsl_core.learner import Learner
from fsl_core.weighting import Outcomes, TaskWeighting


class MetaBatchResult(NamedTuple):
    """What one meta-batch gave.

    The meta-gradient itself is in `.grad` of the learner's (and the weighting's) parameters.

    losses:      (meta_batch_size,) objectives, detached.
    predictions: (meta_batch_size, n_queries, output_dim), detached; if the episodes are of several
                 shapes, one (n_queries, output_dim) for each.
    weights:     (meta_batch_size,), detached.
    gradients:   (meta_batch_size, P) meta-gradients of the tasks, or None if nobody asked for them.
    """

    losses: Tensor
    predictions: Tensor | tuple[Tensor, ...]
    weights: Tensor
    gradients: Tensor | None = None


class MetaGradient:
    """Computes meta-batches of one learner by one `Execution`.

    What is trained is settled here: the parameters that require gradients now.

    If the weights depend on nothing, the weighted sum is computed at once. Otherwise the tasks'
    gradients are kept as one (meta_batch_size, P) matrix, as `TaskWeighting.weigh` sees it.

    learner: or the rule that finds the one for each shape of episodes.
    loss: (prediction, labels) -> scalar.
    """

    def __init__(
        self,
        learner: Learner | Fitting,
        weighting: TaskWeighting,
        loss: Loss,
        execution: Execution = Execution(),
    ):
        self.weighting, self.execution = weighting, execution
        fitted = as_fitting(learner)
        self._trained, self._weightings_own = trained(fitted.learner), [*weighting.parameters()]
        self._mode = make_mode(fitted, loss, execution)

    def __call__(
        self, batch: Episode | Sequence[Group], keep_gradients: bool = False
    ) -> MetaBatchResult:
        """Compute a batch of episodes and set `.grad`; gradients already there are dropped.

        batch: groups of one shape each; or episodes of the shape that the learner is for, where
            every tensor has a leading (meta_batch_size,) axis.
        """
        groups = as_groups(batch)
        for parameter in self._weightings_own:
            parameter.grad = None
        if self.weighting.needs or keep_gradients:
            return self._weigh_gradients(groups, keep_gradients)
        unknown = self._trained[0].new_zeros(sum(len(group.places) for group in groups))
        weights = self.weighting.weigh(_outcomes(unknown, groups)).detach().to(unknown)
        tasks, gradients = self._mode.summed(groups, weights)
        self._set(gradients)
        return MetaBatchResult(*tasks, weights)

    def _weigh_gradients(self, groups: Sequence[Group], keep: bool) -> MetaBatchResult:
        tasks, matrix = self._mode.each(groups)
        weights = self._weigh(tasks, matrix, groups)
        sizes = [parameter.numel() for parameter in self._trained]
        self._set(list((weights @ matrix).split(sizes)))
        return MetaBatchResult(*tasks, weights, matrix if keep else None)

    def _weigh(self, tasks: Tasks, matrix: Tensor, groups: Sequence[Group]) -> Tensor:
        seen = matrix if "gradients" in self.weighting.needs else None
        outcomes = _outcomes(tasks.losses, groups, seen)
        weights = self.weighting.weigh(outcomes)
        if weights.requires_grad:
            # It reaches the weighting's own parameters alone, because outcomes are detached.
            self.weighting.objective(weights, outcomes).backward()
        return weights.detach()

    def _set(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.view_as(parameter)


def meta_gradient(
    learner: Learner | Fitting,
    weighting: TaskWeighting,
    batch: Episode | Sequence[Group],
    loss: Loss,
    execution: Execution = Execution(),
) -> MetaBatchResult:
    """One meta-batch by a `MetaGradient` of its own; if there are many, keep one."""
    return MetaGradient(learner, weighting, loss, execution)(batch)


def _outcomes(losses: Tensor, groups: Sequence[Group], gradients: Tensor | None = None) -> Outcomes:
    return Outcomes(losses, gradients, ids_of(groups))

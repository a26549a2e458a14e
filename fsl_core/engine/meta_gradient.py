"""The meta-gradient of a meta-batch: sum_i weights[i] * grad loss_i."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fsl_core.engine.execution import Execution
from fsl_core.engine.modes import Gradients, Tasks, make_mode, trained
from fsl_core.episode import Episode, Loss
from fsl_core.learner import Learner
from fsl_core.weighting import Outcomes, TaskWeighting


class MetaBatchResult(NamedTuple):
    """What one meta-batch gave.

    The meta-gradient itself is in `.grad` of the learner's (and the weighting's) parameters.

    losses:      (meta_batch_size,) objectives, detached.
    predictions: (meta_batch_size, n_queries, output_dim), detached.
    weights:     (meta_batch_size,), detached.
    gradients:   (meta_batch_size, P) meta-gradients of the tasks, or None if nobody asked for them.
    """

    losses: Tensor
    predictions: Tensor
    weights: Tensor
    gradients: Tensor | None = None


class MetaGradient:
    """Computes meta-batches of one learner by one `Execution`.

    What is trained is settled here: the parameters that require gradients now.

    If the weights depend on nothing, the weighted sum is computed at once. Otherwise the tasks'
    gradients are kept as one (meta_batch_size, P) matrix, as `TaskWeighting.weigh` sees it.

    loss: (prediction, labels) -> scalar.
    """

    def __init__(
        self,
        learner: Learner,
        weighting: TaskWeighting,
        loss: Loss,
        execution: Execution = Execution(),
    ):
        self.weighting, self.execution = weighting, execution
        self._trained, self._weightings_own = trained(learner), list(weighting.parameters())
        self._mode = make_mode(learner, loss, execution)

    def __call__(self, episodes: Episode, keep_gradients: bool = False) -> MetaBatchResult:
        """Compute a batch of episodes and set `.grad`; gradients already there are dropped.

        episodes: every tensor has a leading (meta_batch_size,) axis.
        """
        for parameter in self._weightings_own:
            parameter.grad = None
        if self.weighting.needs or keep_gradients:
            return self._weigh_gradients(episodes, keep_gradients)
        unknown = self._trained[0].new_zeros(len(episodes.id))
        weights = self.weighting.weigh(_outcomes(unknown, episodes)).detach().to(unknown)
        tasks, gradients = self._mode.summed(episodes, weights)
        self._set(gradients)
        return MetaBatchResult(*tasks, weights)

    def _weigh_gradients(self, episodes: Episode, keep: bool) -> MetaBatchResult:
        tasks, matrix = self._mode.each(episodes)
        weights = self._weigh(tasks, matrix, episodes)
        sizes = [parameter.numel() for parameter in self._trained]
        self._set(list((weights @ matrix).split(sizes)))
        return MetaBatchResult(*tasks, weights, matrix if keep else None)

    def _weigh(self, tasks: Tasks, matrix: Tensor, episodes: Episode) -> Tensor:
        seen = matrix if "gradients" in self.weighting.needs else None
        outcomes = _outcomes(tasks.losses, episodes, seen)
        weights = self.weighting.weigh(outcomes)
        if weights.requires_grad:
            # It reaches the weighting's own parameters alone, because outcomes are detached.
            self.weighting.objective(weights, outcomes).backward()
        return weights.detach()

    def _set(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.view_as(parameter)


def meta_gradient(
    learner: Learner,
    weighting: TaskWeighting,
    episodes: Episode,
    loss: Loss,
    execution: Execution = Execution(),
) -> MetaBatchResult:
    """One meta-batch by a `MetaGradient` of its own; if there are many, keep one."""
    return MetaGradient(learner, weighting, loss, execution)(episodes)


def _outcomes(losses: Tensor, episodes: Episode, gradients: Tensor | None = None) -> Outcomes:
    return Outcomes(losses, gradients, episodes.id)

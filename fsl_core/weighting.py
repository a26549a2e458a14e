"""A task weighting: how an outer loop weighs the tasks of a meta-batch."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn


class Outcomes(NamedTuple):
    """What a task weighting may look at; all of it detached.

    losses:    (meta_batch_size,) values of the objective.
    gradients: (meta_batch_size, P) meta-gradients of the tasks, or None where the weighting does not ask for them; which
               parameter has which columns is what a weighting's constructor gets as `columns`.
    ids:       (meta_batch_size,) int64, `Episode.id` of each.
    """

    losses: Tensor
    gradients: Tensor | None = None
    ids: Tensor | None = None


class TaskWeighting(nn.Module):
    """An outer loop's weights: the meta-gradient is sum_i weights[i] * gradient of task i.

    needs: "losses" or "gradients" (or both): what `weigh` reads. An empty set: weights that depend on neither.
    total: what the weights sum to: "one", "tasks" for a sum over the meta-batch, or "any" where the sum carries meaning.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset({"losses"})
    total: Literal["one", "tasks", "any"] = "one"

    def weigh(self, outcomes: Outcomes) -> Tensor:
        """(meta_batch_size,) non-negative weights."""
        raise NotImplementedError(
            f"{type(self).__name__}.weigh: not written. A function of Outcomes that returns one weight a task"
        )

    def objective(self, weights: Tensor, outcomes: Outcomes) -> Tensor:
        """The scalar that the weighting's own parameters minimise, where it has any; `weights` as `weigh` returned them.

        Default: the weighted loss. Override it for a penalty: minimising weights that sum to one alone favours easy tasks.
        """
        return (weights * outcomes.losses).sum()

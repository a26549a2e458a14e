"""A task weighting: how an outer loop weighs the tasks of a meta-batch."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn


class Outcomes(NamedTuple):
    """What a task weighting may look at; all of it detached.

    losses:    (meta_batch_size,) values of the objective.
    gradients: (meta_batch_size, P) meta-gradients of the tasks, or None if the weighting does not
               ask for them. A weighting's constructor learns from its argument `columns` which
               parameter has which columns.
    ids:       (meta_batch_size,) int64, `Episode.id` of each.
    """

    losses: Tensor
    gradients: Tensor | None = None
    ids: Tensor | None = None


class TaskWeighting(nn.Module):
    """An outer loop's weights: the meta-gradient is sum_i weights[i] * gradient of task i.

    needs: "losses" or "gradients" (or both): what `weigh` reads. An empty set: weights that depend
           on neither.
    total: what the weights sum to: "one", "tasks" for a sum over the meta-batch, or "any" if the
           sum carries meaning.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset({"losses"})
    total: Literal["one", "tasks", "any"] = "one"

    def weigh(self, outcomes: Outcomes) -> Tensor:
        """(meta_batch_size,) non-negative weights."""
        raise NotImplementedError(
            f"{type(self).__name__}.weigh: not written. "
            "A function of Outcomes that returns one weight a task"
        )

    def objective(self, weights: Tensor, outcomes: Outcomes) -> Tensor:
        """The scalar that the weighting's own parameters minimise, if it has any.

        Default: the weighted loss. Override it for a penalty: weights that sum to one and follow
        the loss alone favour easy tasks.

        weights: as `weigh` returned them.
        """
        return (weights * outcomes.losses).sum()

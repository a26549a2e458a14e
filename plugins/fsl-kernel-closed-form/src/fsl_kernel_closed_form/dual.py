"""What every kernel gives a closed form.

The support set's kernel matrix, and what dual weights predict for other items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from fsl_kernel_closed_form.kernels import Similarity


class Prediction(NamedTuple):
    """What dual weights predict for items x, (n, output_dim) float64 each.

    value:      f_theta(x), or None without a head.
    correction: k(x, S) @ weights.
    """

    value: Tensor | None
    correction: Tensor

    @property
    def total(self) -> Tensor:
        """Value and correction; the correction alone without a head."""
        return self.correction if self.value is None else self.value + self.correction


class Dual(NamedTuple):
    """Kernel regression on one support set of n items.

    gram:    (m, m) float64; m = n for one kernel that all outputs share, n * output_dim for a
             kernel between outputs too.
    values:  f_theta(S), (n, output_dim) float64, or None without a head.
    predict: dual weights (m, k) -> (x -> Prediction); (n, output_dim) and (m, k) hold the same
             numbers row by row.
    """

    gram: Tensor
    values: Tensor | None
    predict: Callable[[Tensor], Callable[[Tensor], Prediction]]

    def weigh(
        self, targets: Tensor, solver: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor], Prediction]:
        """Solve for the dual weights of targets, (n, output_dim).

        solver: a function of (gram, right-hand side).
        """
        return self.predict(solver(self.gram, targets.reshape(len(self.gram), -1)))

    def missing(self, targets: Tensor) -> Tensor:
        """What f_theta(S) leaves over of the targets; all of them without a head."""
        return targets if self.values is None else targets - self.values


def feature_dual(
    backbone: nn.Module,
    head: nn.Module | None,
    kernel: Callable[[Tensor], Similarity],
    support_x: Tensor,
) -> Dual:
    """The dual of a kernel between backbone features, in float64; one for all outputs."""
    features = backbone(support_x)
    similarity = kernel(features.double())

    def value(z: Tensor) -> Tensor | None:
        return None if head is None else head(z).double()

    def predict(weights: Tensor) -> Callable[[Tensor], Prediction]:
        def prediction(x: Tensor) -> Prediction:
            z = backbone(x)
            return Prediction(value(z), similarity(z.double()) @ weights)

        return prediction

    return Dual(similarity(features.double()), value(features), predict)

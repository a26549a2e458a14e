"""The adapter `ridge`: a linear head fitted to the support set by ridge regression."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_kernel_closed_form.closed_form import default_scale
from fsl_kernel_closed_form.labels import Targets, label_vectors
from fsl_kernel_closed_form.positive import Positive
from fsl_kernel_closed_form.solver import solve

Form = Literal["smaller", "primal", "woodbury"]


@fsl.validated
class Ridge(fsl.Adapter):
    """A linear head in closed form: scale * [z, 1] W.

    W = (X^T X + regularisation * I)^-1 X^T Y with X = [Z, 1] / sqrt(n), Y = labels / sqrt(n) and Z
    the features of the n support items. By Woodbury W = X^T (X X^T + regularisation * I)^-1 Y,
    which solves n equations instead of feature_dim + 1. There is no head to learn: it takes any
    number of ways.

    Source: R2-D2, Bertinetto et al. 2019, arXiv:1805.08136, and its code. Differs: regularisation
    1, there 50, for other features; a learned scale is trained as its logarithm and starts at 10,
    as there for CIFAR-FS and Omniglot; the learned shift of all logits is left out, because
    cross-entropy does not see it; the backbone is the recipe's choice; regression tasks are fitted
    alike, with scale 1.
    """

    name = "ridge"
    keeps_backbone = True
    unequal_shots = True
    training_free = ({"learn_scale": False},)

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        regularisation: Annotated[
            float,
            Field(gt=0, description="in units of squared features, or where a learned one starts"),
        ] = 1.0,
        learn_regularisation: Annotated[
            bool, Field(description="trained by the outer loop, as its logarithm")
        ] = False,
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="factor of the predictions, or its start; null: 10 for logits, 1 for "
                "values",
            ),
        ] = None,
        learn_scale: Annotated[
            bool, Field(description="trained by the outer loop, as its logarithm")
        ] = True,
        targets: Annotated[
            Targets, Field(description="labels of a class as numbers; values are taken as they are")
        ] = "one-hot",
        form: Annotated[
            Form,
            Field(
                description="which system is solved: the smaller one, feature_dim + 1 or n "
                "equations; results are equal"
            ),
        ] = "smaller",
    ):
        super().__init__()
        self.task, self.targets, self.form = task, targets, form
        self.regularisation = Positive(regularisation, learn_regularisation)
        self.scale = Positive(scale or default_scale(task), learn_scale)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        features = _with_bias(backbone(support.x))  # (n, feature_dim + 1) float64
        root = len(features) ** 0.5
        head = self._head(features / root, label_vectors(support.y, self.task, self.targets) / root)
        scale = self.scale()
        return lambda x: (scale * (_with_bias(backbone(x)) @ head)).to(x.dtype)

    def _head(self, x: Tensor, y: Tensor) -> Tensor:
        """(feature_dim + 1, output_dim)"""
        n, d = x.shape
        woodbury = n <= d if self.form == "smaller" else self.form == "woodbury"
        if woodbury:
            return x.mT @ solve(x @ x.mT, y, self.regularisation())
        return solve(x.mT @ x, x.mT @ y, self.regularisation())

    def extra_repr(self) -> str:
        return f"form={self.form}"


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1).double()

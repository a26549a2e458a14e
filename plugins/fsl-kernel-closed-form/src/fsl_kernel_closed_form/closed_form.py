"""The adapter `kernel-closed-form`: the inner loop as kernel regression in function space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_kernel_closed_form.dual import Dual, Prediction, feature_dual
from fsl_kernel_closed_form.kernels import Rbf, Similarity, cosine, linear
from fsl_kernel_closed_form.labels import Targets, label_vectors
from fsl_kernel_closed_form.positive import Positive
from fsl_kernel_closed_form.solver import solve
from fsl_kernel_closed_form.tangent import Outputs, tangent_dual, tangent_names

Kernel = Literal["linear", "rbf", "cosine", "ntk"]
Jitter = Annotated[
    float, Field(ge=0, description="added to the kernel's diagonal, relative to its mean")
]
Parameters = Annotated[
    str | list[str],
    Field(
        description="weights the tangent kernel is taken over: all, head, body, or shell patterns "
        "over their names"
    ),
]
AdaptFrozen = Annotated[
    bool,
    Field(description="whether a tangent kernel is also over weights that require no gradient"),
]


@fsl.validated
class KernelClosedForm(fsl.Adapter):
    """Kernel regression between features, without inner steps.

        scale * (f(x) + k(z, Z) (K + regularisation * I)^-1 (Y - f(S)))

    z = backbone(x), f = head(backbone(x)), Z: features of the support set S, K = k(Z, Z), Y its
    labels as vectors. By default, `residual: false`, f is left out of it: kernel ridge regression,
    which has no head to learn and takes any number of ways (but kernel ntk needs a head).

    After the abstract of arXiv:2411.00404. The update rule, defaults and tasks are this project's
    interpretation; the paper's text was not available. One limit is sourced: kernel ntk, residual,
    regularisation 0 and scale 1 are equation (C) of Zhou et al. 2021, arXiv:2102.03909.
    """

    name = "kernel-closed-form"
    keeps_backbone = True
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        kernel: Annotated[
            Kernel,
            Field(
                description="between features; or ntk, the empirical tangent kernel of backbone "
                "and head"
            ),
        ] = "rbf",
        residual: Annotated[
            bool,
            Field(description="fit what a learned head leaves over; false: the labels themselves"),
        ] = False,
        regularisation: Annotated[
            float,
            Field(ge=0, description="added to the kernel's diagonal; a learned one starts there"),
        ] = 0.1,
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
        ] = "centred",
        width: Annotated[
            Annotated[float, Field(gt=0)] | Literal["median"],
            Field(
                description="of kernel rbf, in units of features; or the median distance in the "
                "support set"
            ),
        ] = "median",
        learn_width: Annotated[
            bool,
            Field(description="trained by the outer loop: the width, or a factor of the median"),
        ] = True,
        jitter: Jitter = 1e-6,
        outputs: Annotated[
            Outputs,
            Field(
                description="of kernel ntk: one (n, n) kernel for all outputs, or one between "
                "outputs too"
            ),
        ] = "shared",
        parameters: Parameters = "all",
        adapt_frozen: AdaptFrozen = False,
    ):
        super().__init__()
        self.threadable = kernel != "ntk"  # that one takes Jacobian-vector products
        if regularisation == 0 and learn_regularisation:
            raise ValueError(
                "kernel-closed-form: regularisation: 0 with learn_regularisation: true, which "
                "trains its logarithm. A number above 0"
            )

        self.task, self.kernel, self.residual = task, kernel, residual
        self.targets, self.jitter, self.outputs = targets, jitter, outputs
        needs_head = residual or kernel == "ntk"
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim) if needs_head else None
        self.names: list[str] = []
        if kernel == "ntk" and self.head is not None:
            self.names = tangent_names(backbone, self.head, parameters, adapt_frozen)
        self.rbf = Rbf(width, learn_width) if kernel == "rbf" else None
        self.regularisation = Positive(regularisation, learn_regularisation)
        self.scale = Positive(scale or default_scale(task), learn_scale)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        dual = self._dual(backbone, support.x)
        targets = label_vectors(support.y, self.task, self.targets)
        missing = dual.missing(targets) if self.residual else targets
        predict = dual.weigh(
            missing, lambda gram, rhs: solve(gram, rhs, self.regularisation(), self.jitter)
        )
        return scaled(predict, self.scale(), self.residual)

    def _dual(self, backbone: nn.Module, support_x: Tensor) -> Dual:
        if self.kernel == "ntk" and self.head is not None:
            return tangent_dual(backbone, self.head, support_x, self.names, self.outputs)
        return feature_dual(backbone, self.head, self._between_features(), support_x)

    def _between_features(self) -> Callable[[Tensor], Similarity]:
        if self.rbf is not None:
            return self.rbf
        return cosine if self.kernel == "cosine" else linear

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, residual={self.residual}"


def default_scale(task: fsl.TaskShape) -> float:
    """Label vectors are of size 1: too small for logits, right for values."""
    return 10.0 if task.kind == "classification" else 1.0


def scaled(
    predict: Callable[[Tensor], Prediction], scale: Tensor | float, residual: bool
) -> fsl.Predictor:
    """A predictor in the dtype of its items."""

    def predictor(x: Tensor) -> Tensor:
        prediction = predict(x)
        return (scale * (prediction.total if residual else prediction.correction)).to(x.dtype)

    return predictor

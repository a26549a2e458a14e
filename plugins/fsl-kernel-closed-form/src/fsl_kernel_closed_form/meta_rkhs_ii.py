"""The adapter `meta-rkhs-ii`: gradient flow in the RKHS of the tangent kernel, in closed form."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_kernel_closed_form.closed_form import (
    AdaptFrozen,
    Jitter,
    Parameters,
    default_scale,
    scaled,
)
from fsl_kernel_closed_form.exponential import Exponential, finite_time
from fsl_kernel_closed_form.labels import Targets, label_vectors
from fsl_kernel_closed_form.positive import Positive
from fsl_kernel_closed_form.solver import solve
from fsl_kernel_closed_form.tangent import Outputs, tangent_dual, tangent_names


@fsl.validated
class MetaRkhsII(fsl.Adapter):
    """scale * f_t(x), f_t(x) = f(x) + H(x, S) H(S, S)^-1 (exp(-t H(S, S)) - I) (f(S) - Y).

    f = head(backbone(x)); there are no inner steps. H(x, x') = J(x) J(x')^T, the empirical tangent
    kernel at the meta-parameters. At time `infinite` it is f(x) + H(x, S) (H(S, S) + jitter * mean
    diagonal * I)^-1 (Y - f(S)).

    Source: equations (A) and (C) and the Padé approximants of Zhou et al. 2021, "Meta-Learning with
    Neural Tangent Kernels", arXiv:2102.03909, main body; its appendices were not available.
    Interpretation (no source available): labels as one-hot vectors minus 1 / n_way, the jitter, the
    scale of the logits, and what the shared kernel is (see `tangent_dual`).
    """

    name = "meta-rkhs-ii"
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        time: Annotated[
            Annotated[float, Field(gt=0)] | Literal["infinite"],
            Field(description="of the gradient flow, in units of 1 / kernel"),
        ] = 1.0,
        exponential: Annotated[
            Exponential,
            Field(description="at a finite time: exact, or a Padé approximant of order 1 or 2"),
        ] = "exact",
        outputs: Annotated[
            Outputs,
            Field(description="one (n, n) kernel for all outputs, or one between outputs too"),
        ] = "shared",
        parameters: Parameters = "all",
        adapt_frozen: AdaptFrozen = False,
        targets: Annotated[
            Targets, Field(description="labels of a class as numbers; values are taken as they are")
        ] = "centred",
        scale: Annotated[
            float | None,
            Field(
                gt=0,
                description="factor of the predictions, or its start; null: 10 for logits, "
                "1 for values",
            ),
        ] = None,
        learn_scale: Annotated[
            bool, Field(description="trained by the outer loop, as its logarithm")
        ] = True,
        jitter: Jitter = 1e-6,
    ):
        super().__init__()
        self.threadable = False  # tangent kernels take Jacobian-vector products
        self.task, self.time, self.exponential = task, time, exponential
        self.outputs, self.targets, self.jitter = outputs, targets, jitter
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim)
        self.names = tangent_names(backbone, self.head, parameters, adapt_frozen)
        self.scale = Positive(scale or default_scale(task), learn_scale)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        dual = tangent_dual(backbone, self.head, support.x, self.names, self.outputs)
        missing = dual.missing(label_vectors(support.y, self.task, self.targets))
        return scaled(dual.weigh(missing, self._weights), self.scale(), residual=True)

    def _weights(self, gram: Tensor, residual: Tensor) -> Tensor:
        if self.time == "infinite":
            return solve(gram, residual, regularisation=0.0, jitter=self.jitter)
        return finite_time(gram, residual, self.time, self.exponential)

    def extra_repr(self) -> str:
        return f"time={self.time}, exponential={self.exponential}, outputs={self.outputs}"

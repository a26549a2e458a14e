"""learn2learn's MetaOptNet as an adapter."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

import fsl_core as fsl
from fsl_learn2learn.library import learn2learn, require_qpth


@fsl.validated
class L2lMetaOptNet(fsl.Adapter):
    """logits = W z with W the multi-class support vector machine of the support features.

    It is solved as a quadratic program: minimise over A, (n, n_way),
    1/2 sum_ij K_ij <A_i, A_j> + 1/2 |A|^2 - sum_i A_i[y_i], with K = Z Z^T,
    A_i[c] <= regularisation * [c = y_i], and rows of A that sum to zero; W = A^T Z. The solution is
    differentiated implicitly. There is no head to learn: it takes any number of ways. The solver is
    qpth's interior-point method.

    Source: Lee et al. 2019, arXiv:1904.03758, as `learn2learn.nn.SVClassifier`. Differs from their
    code: logits have no learned scale, and the loss no label smoothing.
    """

    name = "l2l-metaoptnet"
    keeps_backbone = True
    unequal_shots = True
    vectorizable = False

    def __init__(
        self,
        task: fsl.TaskShape,
        regularisation: Annotated[
            float, Field(gt=0, description="C_reg: the upper bound of a dual variable")
        ] = 0.1,
        max_iterations: Annotated[
            int, Field(ge=1, description="of the solver, which stops early if it has converged")
        ] = 15,
        normalize: Annotated[
            bool, Field(description="features divided by their Euclidean norm")
        ] = False,
    ):
        super().__init__()
        if task.kind != "classification":
            raise ValueError(f"l2l-metaoptnet: {task.kind} episodes. Classification")
        require_qpth()
        self.n_way = task.n_way
        self.options = {
            "C_reg": regularisation,
            "max_iters": max_iterations,
            "normalize": normalize,
        }

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        classifier = learn2learn().nn.SVClassifier(**self.options)
        classifier.fit_(backbone(support.x), support.y, ways=self.n_way)
        return lambda x: classifier(backbone(x))

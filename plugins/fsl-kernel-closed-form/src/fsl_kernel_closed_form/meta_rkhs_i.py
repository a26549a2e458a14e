"""The adapter `meta-rkhs-i`: in training, a regulariser instead of an inner loop.

It rewards fast adaptation.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.func import grad, grad_and_value

import fsl_core as fsl
from fsl_kernel_closed_form.tangent import Weights

Estimator = Literal["squared-norm", "two-batch"]


@fsl.validated
class MetaRkhsI(fsl.Adapter):
    """Training without adaptation, and fine-tuning at test.

        training  L(theta) - alpha * ||grad L(theta)||^2
        test      inner_steps times theta <- theta - inner_lr * grad L_S(theta)

    L, L_S: query and support loss of head(backbone(x)). Training does not adapt: its predictions
    are the unadapted ones. Estimator `two-batch` replaces the square by
    <grad L_S(theta), grad L(theta)>, the first-order expansion of one MAML step. The objective has
    no lower bound: if alpha is too large, gradients keep growing (on glyphs 0.01 was too large,
    0.003 was not).

    Source: equation 4 and Theorem 2 of Zhou et al. 2021, arXiv:2102.03909 (the objective, and that
    it is the norm of the functional gradient), main body; fine-tuning by gradient steps at test
    follows its evaluation of Reptile. Interpretation (no source available): the value of alpha,
    inner_lr, and that L is taken on the query set. theta leaves out weights that require no
    gradient when the adapter is built.
    """

    name = "meta-rkhs-i"
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        alpha: Annotated[
            float,
            Field(
                ge=0,
                description="weight of the regulariser; k times inner_lr stands for k MAML steps",
            ),
        ] = 0.003,
        estimator: Annotated[
            Estimator,
            Field(
                description="squared-norm of the query gradient, or its product with the support "
                "gradient"
            ),
        ] = "squared-norm",
        inner_lr: Annotated[float, Field(gt=0, description="step size of fine-tuning")] = 0.1,
        inner_steps: Annotated[int, Field(ge=0, description="steps of fine-tuning")] = 10,
        adapt_frozen: Annotated[
            bool, Field(description="whether theta has weights that require no gradient, too")
        ] = False,
    ):
        super().__init__()
        self.task, self.alpha, self.estimator = task, alpha, estimator
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim)
        net = fsl.Functional(backbone, self.head)
        self.names = net.adapted(frozen=adapt_frozen)

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        """Fine-tuning, as evaluation does it."""
        net = fsl.Functional(backbone, self.head)
        start = {name: net.weights[name] for name in self.names}

        def loss(phi: Weights, outer: Weights) -> Tensor:
            return self.task.loss(net(outer | phi, support.x), support.y)

        return fsl.InnerProblem(
            start=start,
            outer={name: w for name, w in net.weights.items() if name not in start},
            steps=self.inner_steps,
            loss=loss,
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, self.inner_lr),
            predict=lambda phi, outer, x: net(outer | phi, x),
        )

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """In training the regularised loss and unadapted predictions, else those fine-tuned."""
        if not self.training:
            return super().objective(backbone, episode, loss)
        net = fsl.Functional(backbone, self.head)
        theta = {name: net.weights[name] for name in self.names}

        def of(theta: Weights, items: fsl.LabelledSet) -> tuple[Tensor, Tensor]:
            prediction = net(net.weights | theta, items.x)
            return loss(prediction, items.y), prediction

        gradient, (value, prediction) = grad_and_value(of, has_aux=True)(theta, episode.query)
        other = (
            gradient
            if self.estimator == "squared-norm"
            else grad(of, has_aux=True)(theta, episode.support)[0]
        )
        reward = sum((gradient[name] * other[name]).sum() for name in theta)
        return value - self.alpha * reward, prediction

    def unrolled_only(self) -> str:
        return "training takes no inner steps: it follows a regularised loss"

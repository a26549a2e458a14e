"""Logistic regression on the features of the support set, solved to its optimum."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_core.builtin._prepared import Centre, Power, Prepared

NEWTON_STEPS = 8
"""After six, more change nothing from c = 1 to 1000, separable classes or not."""
SHORTENED = (1.0, 0.5, 0.25, 0.125, 0.03125)
"""Shares of a Newton step that are tried; the first is taken whose loss is as low as any."""


@fsl.validated
class LinearProbe(fsl.Adapter):
    """The minimum of c * sum_i cross_entropy(W z_i + b, y_i) + ||W||^2 / 2 over W and b.

    z_i: features of support item i, after `power`, `centre` and `unit_length` in this order; by
    default scaled to length 1. There is nothing to learn, and nothing to
    tune on a validation set. The optimum is found by Newton's method and differentiated implicitly,
    so that the backbone may be meta-trained through it.

    Source: Tian et al. 2020, arXiv:2003.11539, whose code calls scikit-learn's LogisticRegression
    with its default C = 1; the numbers are those of scikit-learn, to 1e-6 in float64. Those of
    power and centre are with `nearest-centroid`.
    """

    name = "linear-probe"
    unequal_shots = True
    training_free = ({"power": 0.5}, {"power": 0.5, "c": 10.0})

    def __init__(
        self,
        task: fsl.TaskShape,
        c: Annotated[
            float, Field(gt=0, description="weight of the support loss beside ||W||^2 / 2")
        ] = 1.0,
        power: Power = None,
        centre: Centre = "none",
        unit_length: Annotated[bool, Field(description="features scaled to length 1")] = True,
        backbone: nn.Module | None = None,
    ):
        super().__init__()
        self.prepared = Prepared(backbone or nn.Identity(), power, centre, unit_length)
        if task.kind != "classification":
            raise ValueError(
                f"linear-probe: a {task.kind} task. Classification: it is a logistic regression"
            )
        self.n_way, self.c = task.n_way, c

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        z, prepare = self.prepared.of(backbone, support, self.n_way)
        weights, bias = logistic_regression(z, fsl.one_hot(support.y, self.n_way).to(z), self.c)
        return lambda x: torch.addmm(bias, prepare(x), weights)

    def extra_repr(self) -> str:
        return f"c={self.c:g}"


def logistic_regression(z: Tensor, targets: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """(feature_dim, n_way) weights and (n_way,) biases at the optimum; biases sum to zero.

    z: (n, feature_dim).    targets: (n, n_way), one-hot.    c: as for `LinearProbe`.

    The unknowns are in the smaller of two spaces: weights themselves, or combinations of the n
    items, in which the optimum lies. The derivative is that of the implicit function: one Newton
    step from the optimum, of which only the residual is differentiated. It is exact to first order.
    """
    system = _System(z, targets, c)
    constant = _System(z.detach(), targets, c)
    theta = z.new_zeros(system.design.shape[1], targets.shape[1])
    with torch.no_grad():
        for _ in range(NEWTON_STEPS):
            theta = constant.nearer(theta)
    theta = theta - constant.solved(theta, system.residual(theta))
    return system.weights(theta), theta[-1]


class _System:
    """theta = (coefficients M; biases b), and residual(theta) = 0 where the loss is least.

    scores = design @ theta;    residual = R theta + c * test^T (softmax(scores) - targets)

    In the space of weights, design = test = (z, 1), W = M. In that of items, design = (z z^T, 1),
    test = (I, 1) and W = z^T M. R is 1 for M, and for b the mean over classes, on which the
    scores' softmax does not depend.
    """

    def __init__(self, z: Tensor, targets: Tensor, c: float):
        self.z, self.targets, self.c = z, targets, c
        n, d = z.shape
        self.dual = n < d
        self.gram = z @ z.mT if self.dual else torch.eye(d, dtype=z.dtype, device=z.device)
        items = torch.eye(n, dtype=z.dtype, device=z.device) if self.dual else z
        one = z.new_ones(n, 1)
        self.design = torch.cat([self.gram if self.dual else z, one], 1)
        self.test = torch.cat([items, one], 1)

    def weights(self, theta: Tensor) -> Tensor:
        return self.z.mT @ theta[:-1] if self.dual else theta[:-1]

    def residual(self, theta: Tensor) -> Tensor:
        wrong = (self.design @ theta).softmax(1) - self.targets
        shared = theta[-1:].mean(1, keepdim=True).expand(1, theta.shape[1])
        return torch.cat([theta[:-1], shared]) + self.c * self.test.mT @ wrong

    def loss(self, theta: Tensor) -> Tensor:
        fit = -(self.targets * (self.design @ theta).log_softmax(1)).sum()
        norm = (theta[:-1] * (self.gram @ theta[:-1])).sum()
        return self.c * fit + norm / 2 + theta[-1].mean().square() * theta.shape[1] / 2

    def solved(self, theta: Tensor, residual: Tensor) -> Tensor:
        """J^-1 residual, where J is the derivative of `residual` at theta."""
        m, k = theta.shape
        p = (self.design @ theta).softmax(1)
        slopes = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # (n, k, k)
        jacobian = torch.einsum("na,nkl,nb->akbl", self.test, slopes, self.design) * self.c
        jacobian = jacobian + self._ridge(m, k)
        found = torch.linalg.solve(jacobian.reshape(m * k, m * k), residual.reshape(m * k, 1))
        return found.reshape(m, k)

    def _ridge(self, m: int, k: int) -> Tensor:
        """R, of the same shape as the rest of the derivative."""
        one = self.z.new_ones(m)
        one[-1] = 0
        of_weights = torch.einsum("ab,kl->akbl", one.diag(), self.z.new_ones(k).diag())
        mean = self.z.new_full((k, k), 1 / k)
        return of_weights + torch.einsum("ab,kl->akbl", (1 - one).diag(), mean)

    def nearer(self, theta: Tensor) -> Tensor:
        """After a Newton step, whole unless a shorter one lowers the loss clearly more.

        Near the optimum the losses differ by rounding alone. The lowest of them would then be any,
        and a short step would leave an error there, to which the derivative is as far from its own.
        """
        step = self.solved(theta, self.residual(theta))
        candidates = torch.stack([theta - share * step for share in SHORTENED])
        losses = torch.stack([self.loss(candidate) for candidate in candidates])
        slack = torch.finfo(theta.dtype).eps ** 0.5 * losses.amin(0)
        order = torch.arange(len(SHORTENED), device=theta.device)
        first = torch.where(losses <= losses.amin(0) + slack, order, len(SHORTENED)).argmin(0)
        best = fsl.one_hot(first[None], len(SHORTENED)).to(theta)
        return (best[0, :, None, None] * candidates).sum(0)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(LinearProbe)

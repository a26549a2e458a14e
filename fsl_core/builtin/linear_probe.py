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
    keeps_backbone = True
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

    The optimum is a combination of the n items, W = z^T M, and M is what is looked for. The
    derivative is that of the implicit function: one Newton step from the optimum, of which only the
    residual is differentiated. It is exact to first order. Memory: n_way * n^2 numbers.
    """
    system = _System(z @ z.mT, targets, c)
    constant = _System(system.gram.detach(), targets, c)
    theta = z.new_zeros(len(z) + 1, targets.shape[1])
    with torch.no_grad():
        for _ in range(NEWTON_STEPS):
            theta = constant.nearer(theta)
    theta = theta - constant.solved(theta, system.residual(theta))
    return z.mT @ theta[:-1], theta[-1]


class _System:
    """theta = (coefficients M; biases b), and residual(theta) = 0 where the loss is least.

    scores = gram M + b;    residual = (M + c (softmax(scores) - targets);
                                        mean(b) + c sum_i (softmax(scores) - targets)_i)

    gram = z z^T. mean(b) is over classes: the softmax does not depend on it.
    """

    def __init__(self, gram: Tensor, targets: Tensor, c: float):
        self.gram, self.targets, self.c = gram, targets, c

    def scores(self, theta: Tensor) -> Tensor:
        return self.gram @ theta[:-1] + theta[-1:]

    def residual(self, theta: Tensor) -> Tensor:
        wrong = self.c * (self.scores(theta).softmax(1) - self.targets)
        shared = theta[-1:].mean(1, keepdim=True).expand(1, theta.shape[1])
        return torch.cat([theta[:-1] + wrong, shared + wrong.sum(0, keepdim=True)])

    def loss(self, theta: Tensor) -> Tensor:
        fit = -(self.targets * self.scores(theta).log_softmax(1)).sum()
        norm = (theta[:-1] * (self.gram @ theta[:-1])).sum()
        return self.c * fit + norm / 2 + theta[-1].mean().square() * theta.shape[1] / 2

    def solved(self, theta: Tensor, residual: Tensor) -> Tensor:
        """J^-1 residual, where J is the derivative of `residual` at theta.

        The step (m; b) changes c * softmax by g = r - m, for which J (m; b) = (r; q) says, with
        u_k = gram r_k + b_k and column k for class k:
            g_k = E_k (u_k - s),    E_k = (gram + diag(c p_k)^-1)^-1,    sum_k g_k = 0,
            sum_i g_ik + mean(b) = q_k.
        The second gives s, and the third b. So there are matrices of n x n for each class, and none
        of all classes and items together.

        Source: Rasmussen and Williams 2006, algorithm 3.3; the biases are added here.
        """
        r, q = residual[:-1], residual[-1]
        roots = self._roots(self.scores(theta).softmax(1))

        def times(columns: Tensor) -> Tensor:
            """E_k times column k of (n, n_way)."""
            return (roots.mT @ (roots @ columns.mT[:, :, None]))[:, :, 0].mT

        stacked = roots.flatten(0, 1)
        sums = times(torch.ones_like(r))
        u = self.gram @ r
        known = torch.cat([times(u).sum(1, keepdim=True), sums], 1)
        shares = torch.linalg.solve(stacked.mT @ stacked, known)
        s, per_bias = shares[:, :1], shares[:, 1:]  # without biases, and for each of them
        of_biases = sums.sum(0).diag() - sums.mT @ per_bias + 1 / len(q)
        b = torch.linalg.solve(of_biases, q - (sums * (u - s)).sum(0))
        return torch.cat([r - times(u + b - s - (per_bias @ b)[:, None]), b[None]])

    def _roots(self, p: Tensor) -> Tensor:
        """(n_way, n, n) X_k with E_k = X_k^T X_k, without a division by probabilities p."""
        root = (self.c * p).sqrt().mT.contiguous()  # (n_way, n)
        scaled = root[:, :, None] * self.gram * root[:, None, :]
        one = torch.eye(len(p), dtype=p.dtype, device=p.device)
        lower = torch.linalg.cholesky_ex(one + scaled).L  # of numbers that are not finite, no error
        return torch.linalg.solve_triangular(lower, root.diag_embed(), upper=False)

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

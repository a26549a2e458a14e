"""The gradient flow of a linear head in dual form, and how its end depends on where it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Velocity = Callable[[State], State]
Integrate = Callable[[Velocity, State, Tensor], State]
"""(velocity, state at time 0, horizon) -> the state at the horizon."""


@dataclass(frozen=True)
class Flow:
    """dW/dt = -grad l(W), W(0) = W0, l the mean support loss of F W', F the features.

        W(t) = W0 - s(t)' F,    ds/dt = residual(start - gram s),    s(0) = 0

    residual is the derivative of l by the predictions: (softmax(z) - targets) / M for the
    cross-entropy of a classification, 2 (z - targets) / (M N) for the mean square of a regression.

    start:   (M, N) F W0', of M support items and N outputs.    gram: (M, M) F F'.
    targets: (M, N) one-hot labels, or values.    All in float64.
    """

    start: Tensor
    gram: Tensor
    targets: Tensor
    kind: Literal["classification", "regression"]

    @property
    def nothing(self) -> Tensor:
        """s(0)."""
        return torch.zeros_like(self.start)

    def velocity(self, state: State) -> State:
        """ds/dt of (s,)."""
        return (self._residual(self.start - self.gram @ state[0]),)

    def steepness(self) -> Tensor:
        """The most that a component of the flow can decay by in a unit of time, a scalar.

        The largest eigenvalue of gram, times the largest that the derivative of residual can have:
        1 / (2 M) for the softmax, 2 / (M N) for squares.
        """
        largest = torch.linalg.eigvalsh(self.gram.detach().nan_to_num(0.0, 0.0, 0.0))[-1]
        m, n = self.start.shape
        return largest / (2 * m) if self.kind == "classification" else 2 * largest / (m * n)

    def sensitivities(self, state: State) -> State:
        """d/dt of (s, B, Z) with B = ds / dstart, (M, N, M, N), and Z = ds / dgram, (M, N, M, M).

            Bdot = A (I - G B),    Zdot_{m.,ab} = A_m (-[m = a] s_b - (G Z)_{m.,ab})

        A_m, (N, N), is the derivative of residual of item m.
        """
        s, b, z = state
        here = self.start - self.gram @ s
        items, outputs = here.shape
        eye = torch.eye(items, dtype=s.dtype, device=s.device)
        identity = torch.eye(items * outputs, dtype=s.dtype, device=s.device)
        of_start = identity.view(b.shape) - torch.tensordot(self.gram, b, dims=1)
        # (m, i, a, b): the prediction of item m moves by -s_b if gram_mb does.
        of_gram = -torch.einsum("ma,bi->miab", eye, s) - torch.tensordot(self.gram, z, dims=1)
        slopes = self._slopes(here)
        return (
            self._residual(here),
            torch.einsum("mij,mjab->miab", slopes, of_start),
            torch.einsum("mij,mjab->miab", slopes, of_gram),
        )

    def _residual(self, z: Tensor) -> Tensor:
        if self.kind == "classification":
            return (z.softmax(1) - self.targets) / len(z)
        return 2 * (z - self.targets) / z.numel()

    def _slopes(self, z: Tensor) -> Tensor:
        """(M, N, N): the derivative of residual, item by item."""
        if self.kind == "classification":
            p = z.softmax(1)
            return (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(z)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return (2 / z.numel() * eye).expand(len(z), -1, -1)


def reverse(flow: Flow, horizon: Tensor, integrate: Integrate) -> Tensor:
    """s(horizon), (M, N), differentiated through the integrator."""
    return integrate(flow.velocity, (flow.nothing,), horizon)[0]


def forward(flow: Flow, horizon: Tensor, integrate: Integrate) -> Tensor:
    """s(horizon), (M, N), whose derivatives were integrated beside it.

        s + B . (start - stopgrad(start)) + Z . (gram - stopgrad(gram)) + sdot (tau - stopgrad(tau))

    The value is s, and autograd finds the derivatives of s there. Memory M^2 N^2 + M^3 N, whatever
    the horizon: no graph of the integration is kept.
    """
    m, n = flow.start.shape
    with torch.no_grad():
        b, z = flow.start.new_zeros(m, n, m, n), flow.start.new_zeros(m, n, m, m)
        s, b, z = integrate(flow.sensitivities, (flow.nothing, b, z), horizon)
        (speed,) = flow.velocity((s,))
    of_start = torch.einsum("miab,ab->mi", b, _moved(flow.start))
    of_gram = torch.einsum("miab,ab->mi", z, _moved(flow.gram))
    return s + of_start + of_gram + speed * _moved(horizon)


def exact(flow: Flow, horizon: Tensor) -> Tensor:
    """s(horizon) of a regression, whose flow is linear: (M, N), differentiated as it stands.

        exp [[-c G t, c t R], [0, 0]] = [[., s(t)], [0, I]],    c = 2 / (M N),  R = start - targets

    So W(t) = W* + exp(-H t) (W0 - W*), with H the second derivative of the mean square; no
    eigenvalues are divided by, so that gram may be singular.
    """
    m, n = flow.start.shape
    rate = 2 * horizon / (m * n)
    above = torch.cat([-rate * flow.gram, rate * (flow.start - flow.targets)], dim=1)
    square = torch.cat([above, torch.zeros_like(above[:1]).expand(n, -1)])
    return torch.linalg.matrix_exp(square)[:m, m:]


def _moved(tensor: Tensor) -> Tensor:
    """Zero, with the derivative of the tensor."""
    return tensor - tensor.detach()

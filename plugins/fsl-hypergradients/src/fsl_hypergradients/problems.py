"""A small problem whose derivatives are known in closed form, for tests of estimates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fsl_core as fsl


def spd(size: int, smallest: float = 0.5, largest: float = 2.0, seed: int = 0) -> Tensor:
    """A symmetric positive definite matrix with these extreme eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return basis @ torch.diag(torch.linspace(smallest, largest, size)) @ basis.T


class Quadratic(fsl.Adapter):
    """l(phi) = (phi - c)'A(phi - c) / 2 + gamma / 2 ||phi - theta||^2, phi_0 = theta.

    L(phi) = (phi - m)'B(phi - m) / 2. Steps of `rate`. extra: added to l.
    """

    name = "quadratic"

    def __init__(
        self,
        size: int = 20,
        gamma: float = 0.0,
        rate: float = 0.1,
        steps: int = 3,
        extra: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.theta = nn.Parameter(torch.randn(size, generator=generator))
        self.c, self.m = torch.randn(2, size, generator=generator)
        self.A, self.B = spd(size), spd(size, seed=2)
        self.gamma, self.rate, self.inner_steps, self.extra = gamma, rate, steps, extra

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        def loss(phi: dict[str, Tensor], outer: dict[str, Tensor]) -> Tensor:
            away = phi["w"] - self.c
            value = away @ self.A @ away / 2
            if self.extra is not None:
                value = value + self.extra(phi["w"])
            if "centre.w" in outer:
                value = value + self.gamma / 2 * (phi["w"] - outer["centre.w"]).square().sum()
            return value

        return fsl.InnerProblem(
            start={"w": self.theta},
            outer={"centre.w": self.theta} if self.gamma else {},
            steps=self.inner_steps,
            loss=loss,
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, self.rate),
            predict=lambda phi, outer, x: phi["w"][:, None],
            proximal=self.gamma,
            curvature=self.gamma,
        )

    def query_loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        away = prediction[:, 0] - self.m
        return away @ self.B @ away / 2

    def slope(self, phi: Tensor) -> Tensor:
        """grad L(phi)."""
        return self.B @ (phi - self.m)

    def walk(self, theta: Tensor | None = None, steps: int | None = None) -> Tensor:
        """phi_T by hand; theta may carry a graph."""
        theta = self.theta if theta is None else theta
        phi = theta
        for _ in range(self.inner_steps if steps is None else steps):
            phi = phi - self.rate * (self.A @ (phi - self.c) + self.gamma * (phi - theta))
        return phi

    def minimiser(self, theta: Tensor) -> Tensor:
        regular = self.A + self.gamma * torch.eye(len(theta))
        return torch.linalg.solve(regular, self.A @ self.c + self.gamma * theta)


NO_ITEMS = fsl.LabelledSet(torch.zeros(1, 1), torch.zeros(1, 1))


def episode(task: int = 0) -> fsl.Episode:
    return fsl.Episode(NO_ITEMS, NO_ITEMS, torch.tensor(task))


def gradient(estimate: fsl.Hypergradient, adapter: Quadratic, task: int = 0) -> Tensor:
    """The estimate of d L / d theta."""
    value, _ = estimate.objective(adapter, nn.Identity(), episode(task), adapter.query_loss)
    (found,) = torch.autograd.grad(value, adapter.theta)
    return found

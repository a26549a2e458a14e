"""Steps of MAML and MOML on sine waves for many trainings side by side.

With one point of a wave a step of `fsl run` takes 14 ms for some ten thousand multiplications. Here
the derivatives are written out for the network 1 - h - h - 1 with ReLU, and a row of numbers is one
training, so that all seeds and methods are trained at once. It shares no code with fsl-maml and
fsl-moml; tests hold it to them, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def split(rows: Array, h: int) -> list[Array]:
    """(n, P) weights -> views: (n, h), (n, h), (n, h, h), (n, h), (n, h), (n, 1)."""
    w1, b1, w2, *rest = np.split(rows, np.cumsum([h, h, h * h, h, h]), axis=1)
    return [w1, b1, w2.reshape(-1, h, h), *rest]


class Fit:
    """The mean squared error of each row's network at points of its own; x, y: (n, points)."""

    def __init__(self, rows: Array, x: Array, y: Array, h: int):
        self.h, self.x = h, x[..., None]
        w1, b1, self.w2, b2, w3, b3 = split(rows, h)
        self.w3 = w3[:, None]
        before = self.x * w1[:, None] + b1[:, None]
        self.on1 = before > 0
        self.a1 = before * self.on1  # (n, points, h)
        before = self.a1 @ self.w2.swapaxes(1, 2) + b2[:, None]
        self.on2 = before > 0
        self.a2 = before * self.on2
        error = (self.w3 * self.a2).sum(2) + b3 - y
        self.loss = (error * error).mean(1)
        self.down = (2 / error.shape[1] * error)[..., None]
        self.d2 = self.down * self.w3 * self.on2
        self.d1 = self.d2 @ self.w2 * self.on1

    def gradient(self) -> Array:
        """(n, P), of the loss by all weights."""
        by_w2 = self.d2.swapaxes(1, 2) @ self.a1
        of_points = (self.d1 * self.x, self.d1, by_w2, self.d2, self.down * self.a2, self.down)
        return self._rows(of_points)

    def curved(self, by: Array) -> Array:
        """The Hessian of each row times a row: the derivative of `gradient` along it."""
        v1, u1, v2, u2, v3, u3 = split(by, self.h)
        v3 = v3[:, None]
        a1 = (self.x * v1[:, None] + u1[:, None]) * self.on1
        a2 = self.a1 @ v2.swapaxes(1, 2) + a1 @ self.w2.swapaxes(1, 2) + u2[:, None]
        a2 = a2 * self.on2
        out = (v3 * self.a2 + self.w3 * a2).sum(2) + u3
        down = (2 / out.shape[1] * out)[..., None]
        d2 = (down * self.w3 + self.down * v3) * self.on2
        d1 = (self.d2 @ v2 + d2 @ self.w2) * self.on1
        by_w2 = d2.swapaxes(1, 2) @ self.a1 + self.d2.swapaxes(1, 2) @ a1
        return self._rows((d1 * self.x, d1, by_w2, d2, down * self.a2 + self.down * a2, down))

    def _rows(self, parts: Sequence[Array]) -> Array:
        """Sums over points as rows; the third part, of the square weights, is summed already."""
        sums = [part if place == 2 else part.sum(1) for place, part in enumerate(parts)]
        return np.concatenate([part.reshape(len(part), -1) for part in sums], axis=1)


def adapt(rows: Array, x: Array, y: Array, h: int, inner_lr: float, steps: int) -> Array:
    """The rows after steps of plain gradient descent."""
    for _ in range(steps):
        rows = rows - inner_lr * Fit(rows, x, y, h).gradient()
    return rows


@dataclass(frozen=True)
class Method:
    """What a row is trained by.

    rate: of the outer SGD.    beta: 1 is MAML.    drifts: v2, else v1.
    """

    rate: float
    beta: float = 1.0
    drifts: bool = False


@dataclass
class Trainings:
    """Rows of weights that are trained side by side, with a memory of every task.

    theta: (rows, P).    methods: one a row.    inner_lr: a of the inner step.
    order: 2: exact derivatives. 1: the gradient of the inner step is a constant.
    """

    theta: Array
    methods: Sequence[Method]
    tasks: int
    meta_batch_size: int
    hidden: int
    inner_lr: float
    order: int = 2

    def __post_init__(self) -> None:
        def column(values: list[float]) -> Array:
            return np.array(values, self.theta.dtype)[:, None]

        self.origin = self.theta.copy()
        self.memory = np.repeat(self.theta[:, None], self.tasks, axis=1)
        self.met = np.zeros((len(self.theta), self.tasks), bool)
        self.beta = column([m.beta for m in self.methods])
        self.rate = column([m.rate for m in self.methods])
        self.drifting = np.array([m.drifts for m in self.methods])
        self.stays = (~self.drifting[:, None]).astype(self.theta.dtype)
        share = self.tasks / self.meta_batch_size
        self.share = column([share if m.drifts else 1.0 for m in self.methods])
        self.all = np.arange(len(self.theta))
        self.left = np.ones_like(self.beta)
        """Share of a start that v2 has left of it by now."""

    def step(self, ids: Array, points: Array, factor: float = 1.0) -> None:
        """One outer step.

        ids: (rows, size).    points: (rows, size, 4, k): x and y to adapt to, x and y asked for.
        factor: of the schedule, on all rates.
        """
        self._begin(ids, points)
        self._drift()
        n, size = ids.shape
        x, y, asked_x, asked_y = points.reshape(n * size, 4, -1).swapaxes(0, 1)
        support = Fit(np.repeat(self.theta, size, axis=0), x, y, self.hidden)
        moved = (-self.inner_lr * support.gradient()).reshape(n, size, -1)
        u = [self._visit(i, moved[:, place]) for place, i in enumerate(ids.T)]
        slope = Fit(np.concatenate(np.stack(u, 1)), asked_x, asked_y, self.hidden).gradient()
        mean = slope.reshape(n, size, -1).mean(1)
        if self.order == 2:
            bent = support.curved(slope).reshape(n, size, -1).mean(1)
            mean = mean - self.share * self.inner_lr * bent
        self.theta = self.theta - factor * self.rate * self.beta * mean

    def state(self) -> dict[str, Array]:
        """All that steps change."""
        return {name: getattr(self, name) for name in ("theta", "memory", "met", "left")}

    def restore(self, state: dict[str, Array]) -> None:
        """Go on from what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def _visit(self, i: Array, moved: Array) -> Array:
        """The new u of one task a row; moved: v - theta."""
        kept = self.memory[self.all, i]
        u = kept + self.beta * (self.share * moved + self.stays * (self.theta - kept))
        self.memory[self.all, i] = u
        return u

    def _begin(self, ids: Array, points: Array) -> None:
        """Tasks that come for the first time: theta_0 after a step there, drifted since."""
        for place, i in enumerate(ids.T):
            new = ~self.met[self.all, i]
            if new.any():
                x, y = points[:, place, 0], points[:, place, 1]
                moved = -self.inner_lr * Fit(self.origin, x, y, self.hidden).gradient()
                self.memory[self.all[new], i[new]] += (self.left * moved)[new]
                self.met[self.all[new], i[new]] = True

    def _drift(self) -> None:
        """The memories of v2 towards theta."""
        for row in np.flatnonzero(self.drifting):
            beta = self.beta[row]
            self.memory[row] *= 1 - beta
            self.memory[row] += beta * self.theta[row]
            self.left[row] *= 1 - beta

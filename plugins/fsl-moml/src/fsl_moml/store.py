"""Personalised weights of every task, and the two rules by which they move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fsl_core as fsl


class Store(nn.Module):
    """A row of P weights for each task. Rule v1: only the tasks of a step move.

        u_i <- (1 - beta) u_i + beta v_i

    All of it is in buffers, so that a checkpoint holds it. How many weights there are is known when
    the first task comes, or when a checkpoint is read; before that the rows have length zero.

    origin: (P,) theta when training began.    met: (tasks,) tasks that have a row.
    """

    rows: Tensor
    origin: Tensor
    met: Tensor
    sized: tuple[str, ...] = ("rows", "origin")

    def __init__(self, tasks: int, beta: float, at_most_bytes: int):
        super().__init__()
        self.tasks, self.beta, self.at_most_bytes = tasks, beta, at_most_bytes
        self.register_buffer("rows", torch.zeros(tasks, 0))
        self.register_buffer("origin", torch.zeros(0))
        self.register_buffer("met", torch.zeros(tasks, dtype=torch.bool))

    def update(
        self, task: int, theta: Tensor, v: Tensor, start: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The new u of a task as a function of theta and v, (P,); its value is kept.

        start: (origin) -> what u is before the first visit.
        """
        self._begin(theta)
        if not self.met[task]:
            self.rows[task], self.met[task] = self._first_row(start(self.origin)), True
        u, row = self._moved(task, theta, v)
        self.rows[task] = row.detach()
        return u

    def step_done(self) -> None:
        """An outer step was made."""

    def _first_row(self, start: Tensor) -> Tensor:
        return start

    def _moved(self, task: int, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The new u, and what to keep of it."""
        u = (1 - self.beta) * self.rows[task] + self.beta * v
        return u, u

    def _begin(self, theta: Tensor) -> None:
        """Give the rows their length, once."""
        size = theta.numel()
        if not self.origin.numel():
            self._require_room(size, theta.element_size())
            for name in self.sized:
                buffer = getattr(self, name)
                setattr(self, name, theta.new_zeros(*buffer.shape[:-1], size))
            self.origin.copy_(theta.detach())
        elif len(self.origin) != size:
            raise fsl.FslError(
                f"memory: weights of length {len(self.origin)} are kept, and the inner loop moves "
                f"{size}. A hypergradient for each learner"
            )

    def _require_room(self, size: int, bytes_each: int) -> None:
        wanted = self.tasks * size * bytes_each
        if wanted > self.at_most_bytes:
            raise fsl.FslError(
                f"memory: {self.tasks} tasks of {size} weights are {wanted} bytes, and "
                f"at_most_bytes is {self.at_most_bytes}. A larger limit, or fewer adapted weights"
            )

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in self.sized:
            own, given = getattr(self, name), state.get(prefix + name)
            if given is not None and given.shape[:-1] == own.shape[:-1]:
                setattr(self, name, own.new_zeros(given.shape))
        super()._load_from_state_dict(state, prefix, *rest)


class DriftingStore(Store):
    """Rule v2: the tasks that are not of a step move too, towards theta.

        u_j <- (1 - beta) u_j + beta theta                                    not of this step
        u_i <- (1 - beta) u_i + beta theta + beta (tasks / meta_batch_size) (v_i - theta)

    Let E <- (1 - beta) E + beta theta at each step, for all tasks at once. Then between its visits
    u_i - E shrinks by (1 - beta) a step, and this difference is what a row keeps:

        row_i <- (1 - beta)^(steps since the last visit) row_i
                 + beta (tasks / meta_batch_size) (v_i - theta),        u_i = E + row_i

    So a step costs the same however many tasks there are. A task that comes twice in a step adds
    its term twice.

    average: (P,) E.    averaged: () steps that are in E.    step: () steps done.
    since: (tasks,) the step of the last visit, from 1.
    """

    average: Tensor
    averaged: Tensor
    step: Tensor
    since: Tensor
    sized = ("rows", "origin", "average")

    def __init__(self, tasks: int, beta: float, at_most_bytes: int, meta_batch_size: int):
        super().__init__(tasks, beta, at_most_bytes)
        self.share = tasks / meta_batch_size
        self.register_buffer("average", torch.zeros(0))
        for name in ("averaged", "step"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("since", torch.zeros(tasks, dtype=torch.int64))

    def step_done(self) -> None:
        self.step += 1

    def _first_row(self, start: Tensor) -> Tensor:
        return start - self.origin

    def _moved(self, task: int, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        present = int(self.step) + 1
        self._average(theta.detach(), present)
        shrunk = (1 - self.beta) ** (present - int(self.since[task])) * self.rows[task]
        row = shrunk + self.beta * self.share * (v - theta)
        self.since[task] = present
        # E holds beta * theta; this adds its derivative and no value.
        return self.average + self.beta * (theta - theta.detach()) + row, row

    def _average(self, theta: Tensor, present: int) -> None:
        """Take theta into E at the first task of a step."""
        if int(self.averaged) == 0:
            self.average.copy_(self.origin)
        if int(self.averaged) < present:
            self.average = (1 - self.beta) * self.average + self.beta * theta
            self.averaged.fill_(present)

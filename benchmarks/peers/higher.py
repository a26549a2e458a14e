"""higher 0.2.1: `innerloop_ctx` and a differentiable SGD."""

from __future__ import annotations

from collections.abc import Callable

import higher  # type: ignore[import-untyped]  # it has no types
import torch
from torch import Tensor, nn

from benchmarks.peers import gradients


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=inner_lr)
    tasks = episodes.unbatch()

    def run() -> list[Tensor]:
        model.zero_grad()
        for support, query, _ in tasks:
            inner_loop = higher.innerloop_ctx(model, optimizer, copy_initial_weights=False)
            with inner_loop as (functional, differentiable):
                for _ in range(inner_steps):
                    differentiable.step(loss(functional(support.x), support.y))
                (loss(functional(query.x), query.y) / len(tasks)).backward()
        return gradients(model)

    return run

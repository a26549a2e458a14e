"""torch alone, one task after another: for MAML `torch.func.grad` inside `grad`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from benchmarks.peers import gradients

Weights = dict[str, Tensor]


def query_loss(model: nn.Module, loss, inner_lr: float, inner_steps: int) -> Callable[..., Tensor]:
    """(weights, support_x, support_y, query_x, query_y) -> query loss after the inner loop."""

    def loss_of(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, weights, (x,)), y)

    def objective(
        weights: Weights, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        for _ in range(inner_steps):
            gradient = grad(loss_of)(weights, support_x, support_y)
            weights = {name: weight - inner_lr * gradient[name] for name, weight in weights.items()}
        return loss_of(weights, query_x, query_y)

    return objective


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Tensor]]:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    meta_gradient = grad(query_loss(model, loss, inner_lr, inner_steps))
    tasks = episodes.unbatch()

    def run() -> list[Tensor]:
        total = [torch.zeros_like(w) for w in weights.values()]
        for support, query, _ in tasks:
            of_task = meta_gradient(weights, *support, *query)
            torch._foreach_add_(total, list(of_task.values()), alpha=1 / len(tasks))
        return total

    return run


def centroid(model: nn.Module, episodes, loss) -> Callable[[], list[Tensor]]:
    tasks = episodes.unbatch()
    n_way = int(episodes.support.y.max()) + 1

    def run() -> list[Tensor]:
        model.zero_grad()
        for support, query, _ in tasks:
            means = model(support.x).unflatten(0, (n_way, -1)).mean(1)
            logits = -torch.cdist(model(query.x), means).square()
            (loss(logits, query.y) / len(tasks)).backward()
        return gradients(model)

    return run

"""TorchOpt 0.7.3: `MetaSGD`, with states extracted before and recovered after each task.

Its documentation calls backward once, on the mean of all query losses. That is the faster way for
small dense networks; with convolutions a backward a task is, and is taken there. Its functional
`torchopt.sgd` came out within a few per cent of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torchopt  # type: ignore[import-not-found]  # only in the environment of `make bench`
from torch import Tensor, nn

from benchmarks.peers import gradients


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Tensor]]:
    optimizer = torchopt.MetaSGD(model, lr=inner_lr)
    tasks = episodes.unbatch()
    task_by_task = any(isinstance(m, nn.Conv2d) for m in model.modules())

    def query_losses() -> Iterator[Tensor]:
        start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        optimizer_start = torchopt.extract_state_dict(optimizer, by="reference")
        for support, query, _ in tasks:
            for _ in range(inner_steps):
                optimizer.step(loss(model(support.x), support.y))
            query_loss = loss(model(query.x), query.y)
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(optimizer, optimizer_start)
            yield query_loss

    def run() -> list[Tensor]:
        model.zero_grad()
        if task_by_task:
            for query_loss in query_losses():
                (query_loss / len(tasks)).backward()
        else:
            torch.stack(list(query_losses())).mean().backward()
        return gradients(model)

    return run

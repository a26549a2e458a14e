"""Optimizers of recipes are torch's, without what torch wraps around them for its compiler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fsl_core.config.outer import OPTIMIZERS

OPTIONS = {
    "adam": {"lr": 0.1, "weight_decay": 0.1},
    "adamw": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"lr": 0.1, "momentum": 0.5},
}
TORCHS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some steps of a falling size."""
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.arange(6.0).view(2, 3) + step).square().sum().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_steps_of_torchs_own(name: str):
    ours, theirs = (nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    own = OPTIMIZERS[name](ours.parameters(), **OPTIONS[name])
    other = TORCHS[name](theirs.parameters(), **OPTIONS[name])
    seen: list[int] = []
    own.register_step_post_hook(lambda *_: seen.append(1))
    assert isinstance(own, TORCHS[name])
    train(ours, own, 3)
    train(theirs, other, 3)
    assert len(seen) == 3
    assert torch.equal(ours.weight, theirs.weight)
    assert not torch.equal(ours.weight, start)

    # Each goes on from what the other one kept.
    kept = copy.deepcopy((own.state_dict(), other.state_dict()))
    other.load_state_dict(kept[0])
    own.load_state_dict(kept[1])
    train(ours, own, 2)
    train(theirs, other, 2)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.is_grad_enabled()

"""What a task leaves behind is found, whatever form it has; what a task needs not is not."""

from __future__ import annotations

import functools
import random as python_random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.engine.traces import (
    NotCopiableError,
    Traces,
    count_ways,
    find_traces,
    random_state_kept,
)
from fsl_core.testing import tiny_episodes, tiny_task

TASK = tiny_task("classification")


class Tally:
    """An object of no special kind, with slots."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1


class Backbone(nn.Flatten):
    """Does something to itself in each call."""

    def __init__(self, held, do):
        super().__init__()
        self.held, self.do, self.feature_dim = held, do, 50

    def forward(self, x):
        self.do(self)
        return super().forward(x)


def traces(held, do) -> Traces:
    learner = fsl.Learner(Backbone(held, do), NearestCentroid(TASK))
    episodes = tiny_episodes(TASK, 2).unbatch()
    return find_traces(learner, episodes, lambda copy, e: copy.objective(e, TASK.loss))


MOVES = {
    "number": (0, lambda m: setattr(m, "held", m.held + 1)),
    "list": ([0], lambda m: m.held.append(0)),
    "entry of a list": ([0], lambda m: m.held.__setitem__(0, m.held[0] + 1)),
    "dict": ({}, lambda m: m.held.update({len(m.held): 0})),
    "set": ({0}, lambda m: m.held.add(len(m.held))),
    "deque": (deque([0], maxlen=1), lambda m: m.held.append(m.held[-1] + 1)),
    "tensor": (torch.zeros(2), lambda m: m.held.add_(1)),
    "other shape": (torch.zeros(2), lambda m: setattr(m, "held", m.held.repeat(2))),
    "array": (np.zeros(2), lambda m: m.held.__iadd__(1)),
    "object with slots": (Tally(), lambda m: m.held.add()),
    "object behind a method": (Tally().add, lambda m: m.held()),
    "object behind a partial": (functools.partial(Tally.add, Tally()), lambda m: m.held()),
    "module": (nn.BatchNorm1d(2), lambda m: m.held(torch.eye(2))),
    "gradient": (nn.Linear(2, 1), lambda m: m.held(torch.ones(1, 2)).sum().backward()),
    "number of a module": (nn.Dropout(), lambda m: setattr(m.held, "p", m.held.p / 2)),
    "generator": (torch.Generator(), lambda m: torch.rand(1, generator=m.held)),
    "random.Random": (python_random.Random(0), lambda m: m.held.random()),
    "text": ("", lambda m: setattr(m, "held", m.held + "x")),
    "new attribute": (None, lambda m: setattr(m, f"now{len(vars(m))}", 1)),
}


@pytest.mark.parametrize("what", MOVES)
def test_what_moves_is_found_and_named(what):
    found = traces(*MOVES[what])
    assert found.moved is not None
    assert found.moved.startswith("backbone" if what == "new attribute" else "backbone.held")
    assert not found.random


DRAWS = {
    "torch": lambda m: torch.rand(1),
    "Python": lambda m: python_random.random(),
    "numpy": lambda m: np.random.rand(),
}


@pytest.mark.parametrize("which", DRAWS)
def test_random_numbers_of_every_library_are_noticed_and_put_back(which):
    draw = DRAWS[which]
    with random_state_kept():
        expected = [draw(None) for _ in range(2)]
    assert traces(None, draw) == Traces(None, random=True)
    assert [draw(None) for _ in range(2)] == expected


def cache(module):
    module.held.setdefault("eye", torch.eye(2))


STAYS = {
    "nothing": (None, lambda m: None),
    "a cache that the first task fills": ({}, cache),
    "not a number": (torch.full((2,), float("nan")), lambda m: m.held.clone()),
    "a cycle": ([], lambda m: m.held.append(m) if not m.held else None),
    "a number that is set to itself": (1 << 70, lambda m: setattr(m, "held", int(str(m.held)))),
    "weights of an LSTM": (
        nn.LSTM(3, 2),
        lambda m: torch.func.functional_call(
            m.held, {k: v + 1 for k, v in m.held.named_parameters()}, (torch.ones(1, 3),)
        ),
    ),
}


@pytest.mark.parametrize("what", STAYS)
def test_what_a_task_does_not_find_is_no_trace(what):
    assert traces(*STAYS[what]) == Traces()


def test_modules_that_cannot_be_copied_say_why():
    with pytest.raises(NotCopiableError, match="cannot pickle 'generator' object"):
        traces((i for i in range(3)), lambda m: None)


def put(adapter: fsl.Adapter, value: torch.Tensor | None) -> None:
    adapter.moving = value


@pytest.mark.parametrize(
    ("start", "tell", "ways"),
    [
        (torch.ones(()), lambda adapter, p: adapter.moving.fill_(p), 1),
        (torch.ones(()), lambda adapter, p: put(adapter, torch.tensor(p)), 1),
        (torch.ones(()), lambda adapter, p: put(adapter, torch.ones(round(10 * p))), 3),
        (None, lambda adapter, p: put(adapter, None if p < 0.15 else torch.tensor(p)), 2),
        (torch.ones(1).expand(4), lambda adapter, p: None, 1),
        (torch.ones(()), lambda adapter, p: setattr(adapter, "number", p), 3),
    ],
    ids=["filled", "put in", "of other shapes", "absent at first", "in one place", "a number"],
)
def test_numbers_of_a_buffer_are_no_other_way_of_computing(start, tell, ways):
    """Compiled code takes them as an input, unless their shape is another one."""

    class Moves(NearestCentroid):
        number = 1.0

        def on_progress(self, progress):
            tell(self, progress)

    adapter = Moves(TASK)
    adapter.register_buffer("moving", start)
    learner = fsl.Learner(Backbone(None, lambda held: None), adapter)

    def loss_of() -> torch.Tensor:
        moving = 1.0 if adapter.moving is None else adapter.moving.sum()
        return torch.as_tensor(adapter.number * moving)

    assert count_ways(learner, [0.1, 0.2, 0.3], loss_of) == ways

"""Refused options and what does not fit, each in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.testing import GradientSteps, TinyBackbone, tiny_episodes, tiny_task
from fsl_moml import Memory

TASK = tiny_task("regression", n_shot=7, n_query=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, r"memory: beta: 0\. A number above 0"),
        ({"tasks": None}, r"no finite set of tasks to remember\. Episodes that do, such as"),
        ({"variant": "v2"}, r"memory: v2 without meta_batch_size\. The tasks of a step"),
        (
            {"variant": "nasa", "meta_batch_size": 3},
            r"nasa with meta_batch_size 3 of 4 tasks\. 4: it takes every task in every step",
        ),
        ({"local_lr": 0.1}, r"local_lr: 0\.1 with variant: v1\. A step size for local, null"),
        ({"variant": "local"}, r"local_lr: None with variant: local\. A step size for local"),
        (
            {"variant": "local", "local_lr": 0.1, "local_steps": 3},
            r"n_shot 7 with first_items 2 and local_steps 3\. .*such as 5: every local step",
        ),
        (
            {"variant": "local", "local_lr": 0.1, "local_steps": 2, "first_items": 1},
            r"n_query 5 with local_steps 2\. A multiple of 2",
        ),
    ],
    ids=str,
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        Memory(TASK, **{"tasks": 4} | options)


def learner(estimate: Memory) -> fsl.Learner:
    backbone = TinyBackbone()
    return fsl.Learner(backbone, GradientSteps(TASK, backbone, 1), estimate)


def refusal(of: fsl.Learner, number: int = 0) -> str:
    episode = tiny_episodes(TASK, 1).unbatch()[0]._replace(id=torch.tensor(number))
    with pytest.raises(fsl.FslError) as refused:
        of.objective(episode, TASK.loss)
    return str(refused.value)


def test_more_memory_than_allowed():
    found = refusal(learner(Memory(TASK, 4, at_most_bytes=1000)))
    assert "memory: 4 tasks of 273 weights are 4368 bytes, and at_most_bytes is 1000" in found


def test_a_task_that_no_one_announced():
    assert "memory: task 4. A number in 0 .. 4 - 1" in refusal(learner(Memory(TASK, 4)), 4)


def test_another_learner_than_before():
    estimate = Memory(TASK, 4)
    learner(estimate).objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
    other = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    other.feature_dim = 2
    other = fsl.Learner(other, GradientSteps(TASK, other, 1), estimate)
    assert "A hypergradient for each learner" in refusal(other)


def test_local_steps_beside_other_trained_weights():
    class OnlyHead(GradientSteps):
        def __init__(self, task, backbone, inner_steps):
            super().__init__(task, backbone, inner_steps)
            self.names = ("head.weight", "head.bias")

    backbone, options = TinyBackbone(), {"local_steps": 5, "local_lr": 0.1}
    estimate = Memory(TASK, variant="local", **options)
    found = refusal(fsl.Learner(backbone, OnlyHead(TASK, backbone, 1), estimate))
    assert "and backbone.conv.bias is trained besides. `adapted: all`" in found


def test_a_step_of_nasa_without_every_task():
    estimate = Memory(TASK, 4, 4, variant="nasa")
    estimate.on_step(torch.tensor([2, 0, 1, 3]))
    message = r"nasa: a step of tasks \[0, 1, 1, 3\]\. Every task once: episodes in turn"
    with pytest.raises(fsl.DataError, match=message):
        estimate.on_step(torch.tensor([0, 1, 1, 3]))


def test_an_adapter_without_inner_steps_is_refused():
    class Nearest(fsl.Adapter):
        name = "nearest"

    assert Memory(TASK, 4).unfit(Nearest()) == "adapter 'nearest' has no inner problem"

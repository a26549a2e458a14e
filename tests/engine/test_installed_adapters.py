"""Every installed adapter, with its default options, gives the same numbers by every execution; float64, 1e-9."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.engine.choice import why_not_vectorized
from fsl_core.engine.execution import Execution
from fsl_core.hooks.registry import load
from fsl_core.testing import checks, double_precision, tiny_episodes, tiny_task

TASK = tiny_task("classification")
REGISTRY = load()
ADAPTERS = REGISTRY.names("adapter")


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def make_learner(name: str) -> fsl.Learner:
    backbone = Conv4(TASK, channels=4, blocks=1)
    component = REGISTRY.get("adapter", name)
    learner = fsl.Learner(backbone, component.build(component.options(name=name), task=TASK, backbone=backbone))
    checks.leave_zeros(learner)
    learner.adapter.on_progress(0.3)
    return learner


@pytest.mark.parametrize("name", ADAPTERS)
def test_workers_and_vmap_are_the_loop(name):
    learner = make_learner(name)
    for execution in checks.executions(learner.adapter):
        if execution.mode == "loop" or why_not_vectorized(learner) is None:
            checks.assert_equals_the_loop(learner, TASK.loss, tiny_episodes(TASK, 3), execution, name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_would_be_compiled_is_the_loop(name, monkeypatch):
    """The graph that torch.compile makes, forward and backward, without the minute of generating its code."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    learner, episodes = make_learner(name), tiny_episodes(TASK, 3)
    if obstacle := why_not_vectorized(learner):
        pytest.skip(obstacle)
    torch._dynamo.reset()
    found = checks.meta_batch(learner, TASK.loss, Execution("compiled"), episodes)
    assert not checks.differences(found, checks.meta_batch(learner, TASK.loss, Execution(), episodes))

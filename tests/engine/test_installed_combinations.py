"""Every installed adapter with every installed hypergradient and weighting: a meta-batch through
the engine, or a reason in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.errors import FslError, PluginError
from fsl_core.hooks.loader import load
from fsl_core.testing import tiny_episodes, tiny_task

TASK = tiny_task("classification", input_shape=(4,))
META_BATCH, TASKS = 2, 8
CATALOGUE = load().catalogue
ADAPTERS, HYPERGRADIENTS, WEIGHTINGS = (
    CATALOGUE.names(kind) for kind in ("adapter", "hypergradient", "weighting")
)
WITH_STEPS = [
    {"inner_steps": 1},
    {"inner_steps": 2, "proximal": 1.0},
    {"warmup": 1.0, "switch": 0.0, "evaluate_with": "current"},
]
"""Options, for adapters that have them, under which further hypergradients fit."""
REASON = re.compile(r"[^\n]{10,300}")


def built(kind: Any, name: str, injected: dict[str, Any], **options: Any) -> Any:
    component = CATALOGUE.get(kind, name)
    return component.build(component.options(name=name, **options), **injected)


def variants(name: str) -> Iterator[dict[str, Any]]:
    yield {}
    known = CATALOGUE.get("adapter", name).options.model_fields
    yield from (options for options in WITH_STEPS if options.keys() <= known.keys())


def learner_of(name: str, options: dict[str, Any]) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = Mlp(TASK, hidden=[5])
    injected = {"task": TASK, "backbone": backbone, "tasks": TASKS}
    try:
        adapter = built("adapter", name, injected, **options)
    except PluginError as error:  # of a library that the plugin needs and that could not be built
        pytest.skip(str(error))
    return fsl.Learner(backbone, adapter).train()


def refusal(learner: fsl.Learner, name: str) -> str:
    """Give the learner a hypergradient; the reason why it does not fit, or "" if it does."""
    injected = {"task": TASK, "tasks": TASKS, "meta_batch_size": META_BATCH}
    try:
        estimate = built("hypergradient", name, injected)
        if reason := estimate.unfit(learner.adapter):
            return reason
        fitted = fsl.Learner(learner.backbone, learner.adapter, estimate)
        fitted.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
    except (FslError, ValueError) as error:
        return str(error)
    learner.__dict__["hypergradient"] = estimate
    return ""


def run(learner: fsl.Learner, weighting: str) -> str:
    """One outer step of a pair under a weighting; the reason if the weighting refuses it."""
    injected = {"columns": fsl.gradient_columns(learner), "tasks": TASKS}
    try:
        weigh = built("weighting", weighting, injected)
    except (FslError, ValueError) as error:
        return str(error)
    episodes = tiny_episodes(TASK, META_BATCH)
    result = MetaGradient(learner, weigh, TASK.loss, Execution())(episodes)
    learner.on_step(episodes.id)
    assert result.losses.shape == (META_BATCH,)
    assert result.losses.isfinite().all()
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    return ""


def runs_or_says_why(learner: fsl.Learner, hypergradient: str) -> bool:
    """Whether a pair ran under the weightings."""
    reason = refusal(learner, hypergradient)
    assert not reason or REASON.fullmatch(reason), (hypergradient, reason)
    if reason:
        return False
    told = [run(learner, weighting) for weighting in WEIGHTINGS]
    assert all(REASON.fullmatch(text) for text in told if text), told
    assert told.count("") > len(told) / 2, told
    return True


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_triple_runs_or_says_why(name):
    ran: set[str] = set()
    driven = False
    for options in variants(name):
        learner = learner_of(name, options)
        fitting = {h for h in HYPERGRADIENTS if runs_or_says_why(learner, h)}
        assert "unrolled" in fitting
        assert fitting == {"unrolled"} or not learner.adapter.unrolled_only()
        ran |= fitting
        driven |= not learner.adapter.unrolled_only()
    assert len(ran) > len(HYPERGRADIENTS) / 2 or not driven, sorted(set(HYPERGRADIENTS) - ran)

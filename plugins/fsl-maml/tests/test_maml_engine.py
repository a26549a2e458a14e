"""maml's two engines give the same numbers, and the functional one under every execution; float64,
1e-9."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.nn.norms import NORM_POLICIES
from fsl_core.testing import double_precision, tiny_episodes, tiny_task
from fsl_maml import Maml

TASK = tiny_task("classification")
VARIANTS = [
    {},
    {"order": 1},
    {"adapted": "head"},
    {"adapted": [["head"], ["all"]], "clip_inner_grad": 0.1},
    {"learn_inner_lr": "elementwise"},
    {"learn_inner_lr": "per-parameter-and-step", "multi_step_loss": 0.5},
]


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def make(norm="transductive", **options) -> fsl.Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Conv4(TASK, channels=4, blocks=1, norm=norm)
        learner = fsl.Learner(
            backbone, Maml(TASK, backbone, **{"inner_lr": 0.2, "inner_steps": 2} | options)
        )
        for parameter in learner.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return learner


def compute(learner: fsl.Learner, execution: Execution = Execution(), needs=frozenset()):
    weighting = Uniform()
    weighting.needs = needs
    result = MetaGradient(learner, weighting, TASK.loss, execution)(
        tiny_episodes(TASK, 3), keep_gradients=bool(needs)
    )
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters()
    ]
    return result, gradients


def assert_same(found, expected):
    for ours, theirs in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_functional_steps_are_those_of_higher(options):
    functional, higher = make(engine="functional", **options), make(engine="higher", **options)
    assert functional.adapter.vectorizable
    assert not higher.adapter.vectorizable
    assert_same(compute(functional), compute(higher))
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    for ours, theirs in zip(
        functional.eval().trajectory(episode), higher.eval().trajectory(episode), strict=True
    ):
        torch.testing.assert_close(
            ours(episode.query.x), theirs(episode.query.x), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"gradients"})], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_execution_is_the_loop(options, needs):
    learner = make(**options)
    expected = compute(learner, needs=needs)
    for execution in (
        Execution(workers=2),
        Execution("vmap"),
        Execution("vmap", chunk=2),
        Execution(checkpoint_gradients=True),
    ):
        assert_same(compute(learner, execution, needs), expected)


@pytest.mark.parametrize("norm", NORM_POLICIES)
def test_with_every_norm_policy(norm):
    learner = make(norm)
    expected = compute(make(norm, engine="higher"))
    for execution in (Execution(), Execution("vmap")):
        assert_same(compute(learner, execution), expected)


def test_what_would_be_compiled_is_the_loop(monkeypatch):
    """The graphs alone: that the code made from such steps is right, tests/engine/ holds."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    learner = make()
    assert_same(compute(learner, Execution("compiled")), compute(learner))


def test_workers_share_the_work_of_higher_too():
    learner = make(inner_optimizer="adam", inner_lr=0.01, inner_optimizer_options={"eps": 0.001})
    assert_same(compute(learner, Execution(workers=2)), compute(learner))


def test_layers_that_write_running_statistics_are_left_to_higher():
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64))
    backbone.feature_dim = 64
    assert not Maml(TASK, backbone).vectorizable
    with pytest.raises(
        ValueError,
        match=r"engine: functional, with running statistics of BatchNorm1d\. sgd without options",
    ):
        Maml(TASK, backbone, engine="functional")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "fast"}, r"maml: engine: 'fast'\. 'auto', 'functional' or 'higher'"),
        (
            {"engine": "functional", "inner_optimizer": "adam"},
            r"engine: functional, with adam\. sgd without options, on layers without running "
            r"statistics, or engine: higher",
        ),
        (
            {"engine": "functional", "inner_optimizer_options": {"momentum": 0.9}},
            r"engine: functional, with inner_optimizer_options momentum\. sgd without options, on "
            r"layers without running statistics, or engine: higher",
        ),
    ],
    ids=str,
)
def test_refused_engines(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

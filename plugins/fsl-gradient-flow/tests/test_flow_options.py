"""What is refused and what is told, each in one line."""

from __future__ import annotations

import warnings

import pytest
import torch

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_gradient_flow import GradientFlow, StepsWarning, integrators


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0.0}, r"gradient-flow: horizon: 0\.0\. A number from 0\.001"),
        ({"horizon": 2000.0}, r"gradient-flow: horizon: 2000\.0\. .*1000"),
        ({"gradient": "adjoint"}, r"gradient: 'adjoint'\. 'reverse' or 'forward'"),
        ({"integrator": "exact"}, r"exact with a classification, .*\. rk4 or dopri5"),
        ({"integrator": "dopri5", "steps": 4}, r"steps: 4 with integrator: dopri5\. rk4, or null"),
        ({"steps": 0}, r"gradient-flow: steps: 0\."),
    ],
    ids=str,
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        GradientFlow(tiny_task(), TinyBackbone(), **options)


def test_derivatives_beside_the_state_that_are_too_many():
    task = tiny_task(n_way=20, n_shot=5)
    message = (
        r"forward with 100 support items and 20 outputs, which keeps 24,000,000 numbers a task\. "
        r"gradient: reverse, up to 10,000,000 otherwise"
    )
    with pytest.raises(ValueError, match=message):
        GradientFlow(task, TinyBackbone(), gradient="forward")


def adapted(horizon: float, scale: float = 1.0, **options) -> fsl.Predictor:
    """After a task whose features are longer by this factor."""
    task = tiny_task()
    backbone = TinyBackbone()
    backbone.register_forward_hook(lambda module, x, features: scale * features)
    adapter = GradientFlow(task, backbone, horizon, **options)
    return adapter.eval().adapt(backbone, tiny_episodes(task, 1).unbatch()[0].support)


@pytest.mark.parametrize(
    ("integrator", "found"),
    [("rk4", r"[\d,]+ steps of RK4"), ("dopri5", "more than 10 steps of Dormand-Prince")],
)
def test_more_steps_than_allowed(integrator, found, monkeypatch):
    monkeypatch.setattr(integrators, "MOST", 10)
    message = (
        rf"gradient-flow: {found} to horizon 1e\+03\. At most 10: a shorter horizon, or features "
        "of smaller length"
    )
    with pytest.raises(fsl.FslError, match=message):
        adapted(1000.0, 30.0, integrator=integrator)


def test_too_few_steps_are_told():
    message = r"gradient-flow: steps: 8, where horizon 300 and the features .* ask for (\d+)\."
    with pytest.warns(StepsWarning, match=message):
        adapted(300.0, steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted(1.0, steps=8)


def test_what_lets_tasks_share_their_computation():
    backbone = TinyBackbone()
    for kind, options, expected in [
        ("classification", {}, False),
        ("classification", {"steps": 20}, True),
        ("regression", {}, True),
        ("regression", {"integrator": "dopri5"}, False),
    ]:
        assert GradientFlow(tiny_task(kind), backbone, **options).vectorizable == expected


def test_the_horizon_is_told_beside_the_score():
    told = GradientFlow(tiny_task(), TinyBackbone(), horizon=2.0, learn_horizon=False)
    assert told.describe() == {"horizon": pytest.approx(2.0)}
    assert "log_horizon" not in dict(told.named_parameters())
    with torch.no_grad():
        (learned := GradientFlow(tiny_task(), TinyBackbone())).log_horizon.fill_(100.0)
    assert learned.describe()["horizon"] == 1000

"""What `auto` chooses, and what it refuses to choose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine import choice
from fsl_core.engine.choice import Choice, choose, settle, why_not_vectorized
from fsl_core.engine.execution import Execution
from fsl_core.testing import double_precision, tiny_episodes, tiny_task

TASK = tiny_task("classification")


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def make_learner(**backbone) -> fsl.Learner:
    return fsl.Learner(Mlp(TASK, **backbone), NearestCentroid(TASK))


def chosen(learner, monkeypatch, seconds: dict[str, float], steps: int = 10, **options) -> Choice:
    """The choice where measurements would give these seconds; absent ones are failures."""

    def timed(self, execution):
        if str(execution) not in seconds:
            raise RuntimeError("no C++ compiler")
        yield seconds[str(execution)]

    monkeypatch.setattr(choice._Trials, "_timed", timed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    workers = options.pop("measure_workers", True)
    return choose(
        Execution(**options),
        learner,
        Uniform(),
        tiny_episodes(TASK, 4),
        TASK.loss,
        steps=steps,
        measure_workers=workers,
    )


TIMES = {"loop": 2.0, "loop, 2 workers": 1.5, "vmap": 1.0, "compiled": 0.1}


def test_the_fastest_is_chosen_and_says_why(monkeypatch):
    found = chosen(make_learner(), monkeypatch, TIMES)
    assert (found.execution, found.reason) == (
        Execution("vmap"),
        "all tasks as one batch were fastest",
    )
    assert found.seconds == {"loop": 2.0, "loop, 2 workers": 1.5, "vmap": 1.0}


def test_nearly_equal_modes_stay_with_the_loop(monkeypatch):
    assert chosen(make_learner(), monkeypatch, TIMES | {"vmap": 1.4}).execution == Execution(
        workers=2
    )


def test_compiling_has_to_repay_itself(monkeypatch):
    assert chosen(make_learner(), monkeypatch, TIMES, steps=10_000).execution == Execution(
        "compiled"
    )
    assert "compiled" not in chosen(make_learner(), monkeypatch, TIMES, steps=80).seconds


def test_without_a_compiler_the_next_best_is_taken(monkeypatch):
    del (without := dict(TIMES))["compiled"]
    found = chosen(make_learner(), monkeypatch, without, steps=10_000)
    assert found.execution == Execution("vmap")
    assert found.seconds["compiled"] == float("inf")
    assert "compiled failed: no C++ compiler" in found.reason


def test_workers_that_a_recipe_names_are_kept(monkeypatch):
    found = chosen(
        make_learner(),
        monkeypatch,
        {"loop, 3 workers": 1.0, "vmap": 2.0},
        workers=3,
        measure_workers=False,
    )
    assert found.execution == Execution(workers=3)


def test_tasks_that_draw_random_numbers_are_not_shared_by_threads(monkeypatch):
    learner = make_learner()
    learner.backbone.layers.append(nn.Dropout())
    state = torch.get_rng_state()
    assert "loop, 2 workers" not in chosen(learner, monkeypatch, TIMES).seconds
    assert torch.equal(torch.get_rng_state(), state)


def test_forward_mode_derivatives_are_not_shared_by_threads(monkeypatch):
    learner = make_learner()
    learner.adapter.threadable = False
    assert "loop, 2 workers" not in chosen(learner, monkeypatch, TIMES).seconds
    found = settle(Execution(workers=2), learner)
    assert (found.execution, found.reason) == (
        Execution(),
        "1 worker instead of 2: the adapter differentiates in forward mode, which threads cannot do at once",
    )


def test_an_adapter_that_takes_one_task_at_a_time_is_not_vmapped(monkeypatch):
    learner = make_learner()
    learner.adapter.vectorizable = False
    found = chosen(learner, monkeypatch, TIMES)
    assert found.execution == Execution(workers=2)
    assert found.reason.endswith("no vmap: adapter 'nearest-centroid' takes one task at a time")


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, affine=False),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.InstanceNorm1d(6, affine=True),
        nn.LayerNorm(6),
    ],
    ids=str,
)
def test_inexact_norm_layers_are_sent_to_the_loop(layer):
    learner = make_learner(hidden=(6,))
    learner.backbone.layers.append(layer)
    found = settle(Execution("vmap", chunk=2), learner)
    assert found.execution == Execution()
    assert found.reason == (
        f"loop instead of vmap: backbone.layers.1 is a {type(layer).__name__}, whose second derivatives are wrong under vmap, or "
        "which keeps statistics; fsl_core.Norm is exact"
    )


def test_checkpointed_gradients_are_sent_to_the_loop():
    found = settle(Execution("vmap", checkpoint_gradients=True), make_learner())
    assert (found.execution.mode, found.reason) == (
        "loop",
        "loop instead of vmap: gradients are checkpointed",
    )


def test_exact_norm_layers_are_not():
    learner = make_learner(hidden=(6,), norm="transductive")
    learner.backbone.layers.append(nn.BatchNorm1d(6, affine=False, track_running_stats=False))
    assert why_not_vectorized(learner) is None
    assert settle(Execution("vmap"), learner) == Choice(
        Execution("vmap"), "the recipe names it", {}
    )


def test_a_choice_survives_as_plain_data():
    found = Choice(Execution("vmap", chunk=3), "it was fastest", {"vmap": 0.5})
    assert Choice.from_dict(found.as_dict()) == found


def test_a_real_measurement_chooses_something():
    learner = make_learner()
    found = choose(
        Execution(),
        learner,
        Uniform(),
        tiny_episodes(TASK, 4),
        TASK.loss,
        steps=5,
        measure_workers=True,
    )
    assert found.execution.mode in ("loop", "vmap")
    assert all(0 < seconds < 60 for seconds in found.seconds.values())

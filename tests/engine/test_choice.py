"""What `auto` chooses, and what it refuses to choose."""

from __future__ import annotations

import random as python_random

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine import choice, soundness
from fsl_core.engine.choice import Choice, Setting, choose, settle, why_not_vectorized
from fsl_core.engine.execution import Execution
from fsl_core.engine.traces import Traces
from fsl_core.testing import checks, tiny_episodes, tiny_task

TASK = tiny_task("classification")


pytestmark = pytest.mark.usefixtures("float64")


def make_learner(**backbone) -> fsl.Learner:
    return fsl.Learner(Mlp(TASK, **backbone), NearestCentroid(TASK))


def setting_of(learner, weighting=None) -> Setting:
    return Setting(learner, weighting or Uniform(), tiny_episodes(TASK, 4), TASK.loss)


def chosen(learner, monkeypatch, seconds: dict[str, float], steps: int = 10, **options) -> Choice:
    """The choice where measurements would give these seconds; absent ones are failures."""

    def timed(self, execution, batches=3):
        if str(execution) not in seconds:
            raise RuntimeError("no C++ compiler")
        yield seconds[str(execution)]

    monkeypatch.setattr(choice._Trials, "_timed", timed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    workers = options.pop("measure_workers", True)
    setting = setting_of(learner)
    return choose(Execution(**options), setting, steps=steps, measure_workers=workers)


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
    assert found.seconds["compiled"] is None
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
    found = settle(Execution(workers=2), setting_of(learner))
    assert (found.execution, found.reason) == (
        Execution(),
        "1 worker instead of 2: the adapter differentiates in forward mode, which one thread at a time can do",
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
    found = settle(Execution("vmap", chunk=2), setting_of(learner))
    assert found.execution == Execution()
    assert found.reason == (
        f"loop instead of vmap: backbone.layers.1 is a {type(layer).__name__}, whose second "
        "derivatives are wrong under vmap, or which keeps statistics; fsl_core.Norm is exact"
    )


def test_checkpointed_gradients_are_sent_to_the_loop():
    found = settle(Execution("vmap", checkpoint_gradients=True), setting_of(make_learner()))
    assert (found.execution.mode, found.reason) == (
        "loop",
        "loop instead of vmap: gradients are checkpointed",
    )


def test_exact_norm_layers_are_not():
    learner = make_learner(hidden=(6,), norm="transductive")
    learner.backbone.layers.append(nn.BatchNorm1d(6, affine=False, track_running_stats=False))
    assert why_not_vectorized(learner) is None
    assert settle(Execution("vmap"), setting_of(learner)) == Choice(
        Execution("vmap"), "the recipe names it", {}
    )


def test_a_choice_survives_as_plain_data():
    found = Choice(Execution("vmap", chunk=3), "it was fastest", {"vmap": 0.5})
    assert Choice.from_dict(found.as_dict()) == found


def test_a_real_measurement_chooses_something():
    found = choose(Execution(), setting_of(make_learner()), steps=5, measure_workers=True)
    assert found.execution.mode in ("loop", "vmap")
    assert str(found.execution) in found.seconds
    assert min(found.seconds.values()) > 0


class Remembers(NearestCentroid):
    """An adapter whose tasks see, in an attribute, how many came before them."""

    def __init__(self, task):
        super().__init__(task)
        self.seen, self.progress = [], None

    def on_progress(self, progress):
        self.progress = progress

    def objective(self, backbone, episode, loss):
        value, prediction = super().objective(backbone, episode, loss)
        self.seen.append(float(value.detach()))
        return value, prediction


class Told(NearestCentroid):
    """Multiplies its loss by a number that depends on the share of training done."""

    def __init__(self, task, factor):
        super().__init__(task)
        self.factor, self.now = factor, 1.0

    def on_progress(self, progress):
        self.now = self.factor(progress)

    def objective(self, backbone, episode, loss):
        value, prediction = super().objective(backbone, episode, loss)
        return value * self.now, prediction


def told(factor) -> fsl.Learner:
    return fsl.Learner(Mlp(TASK), Told(TASK, factor))


SLOWLY = {
    "from the start": lambda progress: max(1.0, 2 - 20 * progress),
    "in the middle": lambda progress: min(max(progress, 0.4), 0.49),  # for 0.09 of training
    "always": lambda progress: 1 + progress,
}
AT_ONCE = {
    "never": lambda progress: 2.0,
    "after a warm-up": lambda progress: 1.0 if progress < 0.1 else 3.0,
    "in three phases": lambda progress: 1.0 + (progress > 0.3) + (progress > 0.6),
}


@pytest.mark.parametrize("factor", SLOWLY.values(), ids=SLOWLY)
def test_what_changes_at_every_step_is_not_compiled(factor, monkeypatch):
    """Numbers of an adapter are constants to torch, which would compile at each step."""
    why = "it changes at every step, and torch would compile it again each time"
    learner = told(factor)
    before = torch.get_rng_state()
    named = settle(Execution("compiled"), setting_of(learner))
    assert torch.equal(torch.get_rng_state(), before)
    assert learner.adapter.now == 1.0
    assert (named.execution, named.reason) == (
        Execution("vmap"),
        f"vmap instead of compiled: {why}",
    )
    free = chosen(learner, monkeypatch, TIMES, steps=10_000)
    assert (free.execution, free.reason) == (
        Execution("vmap"),
        f"all tasks as one batch were fastest; not compiled: {why}",
    )
    assert "compiled" not in free.seconds


@pytest.mark.parametrize("factor", AT_ONCE.values(), ids=AT_ONCE)
def test_what_changes_at_once_is_compiled(factor, monkeypatch):
    found = chosen(told(factor), monkeypatch, TIMES, steps=10_000)
    assert found.execution == Execution("compiled")


def test_what_changes_by_the_numbers_of_a_buffer_is_compiled(monkeypatch):
    """A tensor is an input of compiled code, and no constant."""

    class InBuffer(Told):
        def __init__(self, task, factor):
            super().__init__(task, factor)
            self.now = None
            self.register_buffer("factor_now", torch.zeros(()))

        def on_progress(self, progress):
            self.factor_now.fill_(self.factor(progress))

        def objective(self, backbone, episode, loss):
            value, prediction = NearestCentroid.objective(self, backbone, episode, loss)
            return value * self.factor_now, prediction

    learner = fsl.Learner(Mlp(TASK), InBuffer(TASK, SLOWLY["always"]))
    found = chosen(learner, monkeypatch, TIMES, steps=10_000)
    assert found.execution == Execution("compiled")


def test_random_numbers_are_no_change(monkeypatch):
    """Each try draws the same, so dropout is not taken for an adapter that changes."""
    learner = told(lambda progress: 2.0)
    learner.backbone.layers = nn.Sequential(learner.backbone.layers, nn.Dropout(0.5))
    assert setting_of(learner).traces.random
    assert not setting_of(learner).drifts


class Counts(fsl.TaskWeighting):
    """A weighting that remembers how often it was asked."""

    name = "counts"

    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))
        self.last = None

    def weigh(self, outcomes):
        self.asked += 1
        self.last = outcomes.losses
        return torch.full_like(outcomes.losses, 1 / len(outcomes.losses))


class Lstm(nn.Module):
    """A backbone without a batching rule in torch."""

    def __init__(self, task):
        super().__init__()
        self.cell = nn.LSTM(task.input_shape[-1], 4, batch_first=True)
        self.feature_dim = 4

    def forward(self, x):
        return self.cell(x[:, 0])[0][:, -1]


class NoCopy(nn.Identity):
    def __deepcopy__(self, memo):
        raise TypeError("cannot copy what is open")


def with_layer(*layers: nn.Module, adapter=NearestCentroid) -> fsl.Learner:
    backbone = Mlp(TASK, hidden=(6,))
    backbone.layers.extend(layers)
    return fsl.Learner(backbone, adapter(TASK))


def everything(setting: Setting) -> dict:
    """All that a trial could leave behind."""
    parts = {"learner": setting.learner, "weighting": setting.weighting}
    seen = {f"{n}: {k}": v for n, m in parts.items() for k, v in soundness.snapshot(m, n).items()}
    adapter, counts = setting.learner.adapter, setting.weighting
    attributes = {"memory": list(adapter.seen), "progress": adapter.progress, "last": counts.last}
    random = {"torch": torch.get_rng_state(), "Python": torch.tensor(python_random.getstate()[1])}
    return seen | attributes | random


@pytest.mark.parametrize(
    "layer",
    [lambda: nn.BatchNorm1d(6), nn.Dropout, nn.Identity],
    ids=["buffers", "random numbers", "nothing"],
)
def test_trials_leave_no_trace(layer):
    learner = with_layer(layer(), adapter=Remembers).eval()
    parameter = next(learner.parameters())
    parameter.grad = torch.ones_like(parameter)
    setting = setting_of(learner, Counts())
    before = everything(setting)
    choose(Execution(), setting, steps=5, measure_workers=True)
    for wanted in (Execution("vmap"), Execution(workers=2)):
        settle(wanted, setting)
    setting.__dict__["traces"] = Traces()  # as if tasks left none: all is tried now
    choose(Execution(), setting, steps=5, measure_workers=True)
    checks.assert_unchanged(before, everything(setting), "trials", "Work on copies")


def test_tasks_that_move_a_buffer_are_computed_one_after_another(monkeypatch):
    learner = with_layer(nn.BatchNorm1d(6))
    found = chosen(learner, monkeypatch, {})
    reason = "a task moves backbone.layers.1.running_mean, which the task after it finds"
    assert found == Choice(Execution(), f"one task at a time: {reason}", {})
    named = settle(Execution(workers=2), setting_of(learner))
    assert named == Choice(Execution(), f"1 worker instead of 2: {reason}", {})


@pytest.mark.parametrize("mode", ["vmap", "compiled"])
def test_tasks_that_move_an_attribute_are_not_batched(mode):
    found = settle(Execution(mode, chunk=2), setting_of(with_layer(adapter=Remembers)))
    assert found.execution == Execution()
    assert found.reason == (
        f"loop instead of {mode}: a task moves adapter.seen, which the task after it finds"
    )


def test_named_workers_do_not_share_random_numbers():
    found = settle(Execution(workers=2), setting_of(with_layer(nn.Dropout())))
    reason = "a task draws random numbers, and chance would decide which thread gets which"
    assert found == Choice(Execution(), f"1 worker instead of 2: {reason}", {})


def test_what_cannot_be_copied_is_not_tried():
    setting = setting_of(with_layer(NoCopy()))
    found = choose(Execution(), setting, steps=5, measure_workers=True)
    assert found == Choice(
        Execution(), "nothing is tried, because it cannot be copied: cannot copy what is open", {}
    )
    named = settle(Execution("vmap", workers=2), setting)
    assert named.execution == Execution()
    assert named.reason == "loop instead of vmap: it cannot be copied: cannot copy what is open"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_named_mode_that_cannot_be_is_replaced_by_the_loop(workers):
    learner = fsl.Learner(Lstm(TASK), NearestCentroid(TASK))
    found = settle(Execution("vmap", workers, chunk=2), setting_of(learner))
    assert found.execution == Execution(workers=workers)
    assert found.reason.startswith("loop instead of vmap: it failed: Batching rule not implemented")
    assert "\n" not in found.reason


def test_after_the_loop_replaced_a_mode_its_workers_are_looked_at():
    learner = fsl.Learner(nn.Sequential(Lstm(TASK), nn.Dropout()), NearestCentroid(TASK))
    found = settle(Execution("vmap", workers=2), setting_of(learner))
    assert found.execution == Execution()
    assert [part.split(":")[0] for part in found.reason.split("; ")] == [
        "loop instead of vmap",
        "1 worker instead of 2",
    ]


def test_without_a_compiler_a_named_mode_becomes_the_loop(monkeypatch):
    def compiled(*_, **__):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working compiler.")

    monkeypatch.setattr(torch, "compile", compiled)
    found = settle(Execution("compiled"), setting_of(make_learner()))
    assert (found.execution, found.reason) == (
        Execution(),
        "loop instead of compiled: it failed: backend='inductor' raised: "
        "InvalidCxxCompiler: No working compiler",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "fast"),
        ("workers", 0),
        ("workers", None),
        ("chunk", -1),
        ("precision", 16),
        ("reason", None),
        ("seconds_measured", [1.0]),
    ],
)
def test_a_stored_choice_with_other_content_is_refused(key, value):
    stored = Choice(Execution("vmap"), "it was fastest", {"vmap": 0.5}).as_dict()
    with pytest.raises(fsl.RunError, match=r"^a stored execution: .*\. The file as it was written"):
        Choice.from_dict(stored | {key: value})

"""Every execution gives the loop's losses, predictions, task gradients and meta-gradient; float64,
1e-9."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.engine import modes
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.modes import at_a_time
from fsl_core.errors import RunError
from fsl_core.nn.norms import NORM_POLICIES
from fsl_core.testing import (
    GradientSteps,
    Uneven,
    checks,
    tiny_episodes,
    tiny_task,
)

TASK = tiny_task("classification")


pytestmark = pytest.mark.usefixtures("float64")


def make_learner(adapter: str, norm: str, conv: bool = True, **options) -> fsl.Learner:
    options = {"channels": 4, "blocks": 1, **options}
    backbone = Conv4(TASK, norm=norm, **options) if conv else Mlp(TASK, hidden=(6,), norm=norm)
    adapter = GradientSteps(TASK, backbone) if adapter == "steps" else NearestCentroid(TASK)
    adapter.unused, adapter.scalar = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    learner = fsl.Learner(backbone, adapter)
    checks.leave_zeros(learner)
    return learner


def compute(learner: fsl.Learner, execution: Execution, needs=frozenset(), tasks: int = 5):
    return checks.meta_batch(learner, TASK.loss, execution, tiny_episodes(TASK, tasks), needs)


def assert_same(found, expected):
    assert not checks.differences(found, expected)


@pytest.mark.parametrize(
    "needs", [frozenset(), frozenset({"losses"}), frozenset({"gradients"})], ids=str
)
@pytest.mark.parametrize(
    "execution",
    [
        Execution(workers=2),
        Execution("vmap"),
        Execution("vmap", chunk=2),
        Execution("vmap", chunk=9),
    ],
    ids=str,
)
@pytest.mark.parametrize("adapter", ["steps", "nearest-centroid"])
def test_every_execution_is_the_loop(adapter, execution, needs):
    learner = make_learner(adapter, "transductive")
    assert_same(compute(learner, execution, needs), compute(learner, Execution(), needs))


@pytest.mark.parametrize("conv", [True, False], ids=["conv4", "mlp"])
@pytest.mark.parametrize("norm", NORM_POLICIES)
def test_with_every_norm_policy(norm, conv):
    learner = make_learner("steps", norm, conv)
    expected = compute(learner, Execution())
    for execution in (Execution(workers=3), Execution("vmap")):
        assert_same(compute(learner, execution), expected)


@pytest.mark.slow
def test_compiled_is_the_loop():
    """With the code that torch makes, which takes as long as the graph is large: one step, no norm.

    The graphs of the others are held to the loop below, without code.
    """
    learner = make_learner("steps", "none", conv=False)
    learner.adapter.inner_steps = 1
    assert_same(compute(learner, Execution("compiled")), compute(learner, Execution()))


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("norm", "conv", "needs"),
    [("support", False, frozenset({"gradients"})), ("transductive", True, frozenset())],
)
def test_what_would_be_compiled_is_the_loop(norm, conv, needs):
    learner = make_learner("steps", norm, conv)
    compiled = compute(learner, Execution("compiled"), needs)
    assert_same(compiled, compute(learner, Execution(), needs))


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("norm", "adapter"), [("transductive", "steps"), ("none", "nearest-centroid")]
)
def test_compiled_strides_are_the_loop(norm, adapter):
    """Second and later convolutions with a stride are products there."""
    learner = make_learner(adapter, norm, blocks=2, downsample="stride")
    learner.adapter.inner_steps = 1  # the time to trace grows with them
    assert_same(compute(learner, Execution("compiled")), compute(learner, Execution()))


@pytest.mark.usefixtures("captured_only")
def test_what_would_be_compiled_for_a_gpu_is_the_loop(monkeypatch):
    """Convolutions are products there, and pooling is comparisons."""
    learner = make_learner("steps", "transductive", blocks=2)
    learner.adapter.inner_steps = 1
    expected = compute(learner, Execution())
    monkeypatch.setattr("fsl_core.nn.blocks._is_gpu", lambda x: True)
    assert_same(compute(learner, Execution("compiled")), expected)


@pytest.mark.parametrize(
    ("tasks", "in_cache", "parts"),
    [
        (32, 8, [8] * 4),
        (32, 20, [16] * 2),
        (32, 99, [32]),
        (8, 1, [8]),
        pytest.param(37, 8, [37], id="no parts of one size"),
    ],
)
def test_compiled_code_takes_parts_that_stay_in_the_cache(monkeypatch, tasks, in_cache, parts):
    learner, found = make_learner("nearest-centroid", "none", conv=False), []
    weights = sum(parameter.nbytes for parameter in learner.parameters())
    monkeypatch.setattr("fsl_core.engine.modes._IN_CACHE", in_cache * weights)

    def uncompiled(function, **_):
        def call(parameters, episodes, *rest):
            found.append(len(episodes.id))
            return function(parameters, episodes, *rest)

        return call

    monkeypatch.setattr("torch.compile", uncompiled)
    expected = compute(learner, Execution(), tasks=tasks)
    assert_same(compute(learner, Execution("compiled"), tasks=tasks), expected)
    assert_same(compute(learner, Execution("compiled"), {"gradients"}, tasks), expected)
    assert found == parts * 2
    assert at_a_time(Execution("compiled"), tasks, [*learner.parameters()]) == parts[0]
    found.clear()
    compute(learner, Execution("compiled", chunk=5), tasks=tasks)
    assert max(found) == 5  # what a recipe names


def test_torchs_advice_to_round_is_not_passed_on_from_a_gpu(monkeypatch):
    said = ["TensorFloat32 tensor cores are not enabled", "\nOnline softmax is disabled", "other"]

    def advising(function, **_):
        def call(*arguments):
            for text in said:
                warnings.warn(text, UserWarning, stacklevel=1)
            return function(*arguments)

        return call

    monkeypatch.setattr("torch.compile", advising)
    compiled = modes._compiled(lambda x: x, on_gpu=True)
    with pytest.warns(UserWarning, match="other") as heard:
        compiled(torch.ones(1))
    assert [str(warning.message) for warning in heard] == ["other"]


def test_kernels_are_private_before_anything_is_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "fsl_core.engine.modes.use_private_kernels", lambda: calls.append("kernels")
    )
    monkeypatch.setattr("torch.compile", lambda function, **_: calls.append("compile") or function)
    compute(make_learner("nearest-centroid", "none", conv=False), Execution("compiled"))
    assert calls[0] == "kernels"
    assert "compile" in calls


@pytest.mark.usefixtures("captured_only")
def test_any_number_of_learners_is_compiled_in_one_process():
    """torch gives up after eight variants of one code object; here after two."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(4):
            learner = make_learner("nearest-centroid", "none", conv=False)
            assert_same(compute(learner, Execution("compiled")), compute(learner, Execution()))


class Counted(NearestCentroid):
    """Its loss depends on a number that every step changes."""

    def __init__(self, task):
        super().__init__(task)
        self.number = 0.0

    def objective(self, backbone, episode, loss):
        value, prediction = super().objective(backbone, episode, loss)
        return value * self.number, prediction


@pytest.mark.usefixtures("captured_only")
def test_an_adapter_that_is_another_one_at_each_step_is_told_in_one_line():
    learner = fsl.Learner(Mlp(TASK), Counted(TASK))
    step = MetaGradient(learner, Uneven(), TASK.loss, Execution("compiled"))
    message = r"^execution compiled: tasks are computed in a new way at every step, .* vmap;"

    def at(number: float) -> None:
        learner.adapter.number = number
        step(tiny_episodes(TASK, 4))

    with torch._dynamo.config.patch(recompile_limit=2):
        at(1.0)
        at(2.0)
        with pytest.raises(RunError, match=message):
            at(3.0)


@pytest.mark.parametrize("norm", ["support", "ordinary"])
def test_checkpointed_gradients_are_the_same(norm):
    learner = make_learner("steps", norm)
    assert_same(
        compute(learner, Execution(checkpoint_gradients=True)), compute(learner, Execution())
    )


def test_bf16_computes_near_the_loop_and_keeps_parameters_and_gradients():
    learner = make_learner("nearest-centroid", "transductive").float()
    episodes = tiny_episodes(TASK, 4)
    single = episodes._replace(
        support=fsl.LabelledSet(episodes.support.x.float(), episodes.support.y),
        query=fsl.LabelledSet(episodes.query.x.float(), episodes.query.y),
    )
    losses = {}
    for precision in ("float32", "bf16"):
        result = MetaGradient(learner, Uneven(), TASK.loss, Execution(precision=precision))(single)
        losses[precision] = result.losses
        assert result.losses.dtype == result.predictions.dtype == torch.float32
        assert {p.grad.dtype for p in learner.parameters() if p.grad is not None} == {torch.float32}
    torch.testing.assert_close(losses["bf16"], losses["float32"], rtol=0.05, atol=0.05)
    assert not torch.equal(losses["bf16"], losses["float32"])


def test_workers_leave_the_modules_and_the_callers_threads_alone():
    learner, threads = make_learner("steps", "transductive"), torch.get_num_threads()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    compute(learner, Execution(workers=2))
    torch.testing.assert_close(learner.state_dict(), before, rtol=0, atol=0)
    assert torch.get_num_threads() == threads


def test_an_error_of_a_task_reaches_the_caller():
    learner = make_learner("steps", "transductive")
    learner.adapter.head = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        compute(learner, Execution(workers=2))


@pytest.mark.parametrize(
    "execution",
    [
        Execution(),
        Execution("vmap"),
        Execution("vmap", chunk=2),
        pytest.param(Execution("compiled"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_random_numbers_of_equal_seeds_are_equal(execution):
    learner = fsl.Learner(
        nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.Dropout()), NearestCentroid(TASK)
    )
    compute_mode = MetaGradient(learner, Uneven(), TASK.loss, execution)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(compute_mode(tiny_episodes(TASK, 4)).predictions)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_workers_add_gradients_up_in_the_order_of_the_tasks():
    learner = make_learner("steps", "transductive")
    one, *more = (compute(learner, Execution(workers=n)) for n in (2, 2, 3, 5))
    assert all(torch.equal(found["meta-gradient"], one["meta-gradient"]) for found in more)

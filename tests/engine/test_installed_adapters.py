"""Every installed adapter, with its default options, gives the same numbers by every execution;
float64, 1e-9."""

from __future__ import annotations

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.torchvision_models import Torchvision
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.choice import Setting, why_not_vectorized
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.errors import PluginError
from fsl_core.hooks.loader import load
from fsl_core.testing import checks, tiny_episodes, tiny_task

TASK = tiny_task("classification")
PLUGINS = load()
ADAPTERS = PLUGINS.catalogue.names("adapter")


pytestmark = pytest.mark.usefixtures("float64")


def make_learner(
    name: str, backbone: fsl.Backbone | None = None, task: fsl.TaskShape = TASK, **options
) -> fsl.Learner:
    backbone = backbone or Conv4(TASK, channels=4, blocks=1)
    component = PLUGINS.catalogue.get("adapter", name)
    try:
        adapter = component.build(
            component.options(name=name, **options), task=task, backbone=backbone
        )
    except PluginError as error:  # of a library that the plugin needs and that could not be built
        pytest.skip(str(error))
    learner = fsl.Learner(backbone, adapter)
    checks.leave_zeros(learner)
    learner.adapter.on_progress(0.3)
    return learner


@pytest.mark.parametrize("name", ADAPTERS)
def test_workers_and_vmap_are_the_loop(name):
    learner = make_learner(name)
    allowed = [
        execution
        for execution in checks.executions(learner.adapter)
        if execution.mode == "loop" or why_not_vectorized(learner) is None
    ]
    episodes = tiny_episodes(TASK, 3)
    checks.assert_equals_the_loop(learner, TASK.loss, episodes, dict.fromkeys(allowed, name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maml", {"inner_steps": 2}),
        ("maml", {"inner_steps": 1, "order": 1}),
        ("hypermaml", {}),
        ("ridge", {}),
        ("kernel-closed-form", {}),
        ("linear-probe", {}),
        ("nearest-centroid", {}),
    ],
)
def test_a_pretrained_network_may_be_frozen_in_part(name, options):
    """Only what `train` names gets a gradient, the same by every execution."""
    if name not in ADAPTERS:
        pytest.skip(f"{name} is not installed")
    task = tiny_task("classification", input_shape=(3, 8, 8))
    torch.manual_seed(0)
    backbone = Torchvision(
        task, False, "shufflenet_v2_x0_5", weights=None, layer="stage2", train=["stage2.3.*"]
    ).double()
    backbone.preprocess = fsl.Preprocessing(16, [0.5] * 3, [0.25] * 3).double()
    learner = make_learner(name, backbone, task, **options).double()
    episodes = tiny_episodes(task, 3)
    remedies = dict.fromkeys(checks.executions(learner.adapter), name)
    checks.assert_equals_the_loop(learner, task.loss, episodes, remedies)
    learner.zero_grad()
    MetaGradient(learner, Uniform(), task.loss, Execution("loop"))(episodes)
    trained = {key for key, p in backbone.net.named_parameters() if key.startswith("stage2.3.")}
    moved = {key for key, p in backbone.net.named_parameters() if p.grad is not None}
    assert trained == moved
    assert all(p.grad.any() for key, p in backbone.net.named_parameters() if key in trained)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.usefixtures("captured_only")
def test_what_would_be_compiled_is_the_loop(name):
    """Whether torch can make one graph of it; the kit holds the code that is made of such graphs."""
    learner, episodes = make_learner(name, Mlp(TASK, hidden=(6,))), tiny_episodes(TASK, 3)
    if obstacle := why_not_vectorized(learner):
        pytest.skip(obstacle)
    found = checks.meta_batch(learner, TASK.loss, Execution("compiled"), episodes)
    assert not checks.differences(
        found, checks.meta_batch(learner, TASK.loss, Execution(), episodes)
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_one_call_for_both_sets_gives_what_two_give(name):
    learner = make_learner(name, Conv4(TASK, channels=4, blocks=1, norm="ordinary"))
    if not learner.adapter.keeps_backbone:
        pytest.skip(f"{name} does not claim it")
    calls, features = [], learner.backbone.features
    learner.backbone.features = lambda x: (calls.append(len(x)), features(x))[1]
    together, episodes = [], tiny_episodes(TASK, 3)
    for keeps in (True, False):
        learner.adapter.keeps_backbone = keeps
        calls.clear()
        together.append(checks.meta_batch(learner, TASK.loss, Execution(), episodes))
        assert len(calls) == (3 if keeps else 6)
    assert not checks.differences(*together)


def gradients_of(learner: fsl.Learner) -> list[torch.Tensor]:
    """Copies; zeros where nothing depends on a parameter."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters()]


MOVING = [  # and at least how many different losses there are at 8 moments of training
    ("hypermaml", {}, 5),
    ("hypermaml", {"inner_steps": 2, "gradient_target": "universal"}, 5),
    ("hypermaml", {"inner_steps": 2, "repeat_delta": "each-step"}, 5),
    ("hypermaml", {"switch": 0.0}, 2),
    ("maml", {"inner_steps": 3, "multi_step_loss": 0.9}, 7),
    ("maml", {}, 1),
]


@pytest.mark.parametrize(("name", "options", "least"), MOVING)
@pytest.mark.usefixtures("captured_only")
def test_numbers_that_move_with_training_are_no_constants_of_compiled_code(name, options, least):
    if name not in ADAPTERS:
        pytest.skip(f"{name} is not installed")
    learner, episodes = (
        make_learner(name, Mlp(TASK, hidden=(6,)), **options),
        tiny_episodes(TASK, 3),
    )
    assert not Setting(learner, Uniform(), episodes, TASK.loss).drifts
    step, plain = (
        MetaGradient(learner, Uniform(), TASK.loss, execution)
        for execution in (Execution("compiled"), Execution())
    )
    losses = set()
    with torch._dynamo.config.patch(recompile_limit=3):  # one for each phase of training
        for moment in range(8):
            learner.on_progress(moment / 8)
            found, expected = (
                [compute(episodes).losses, *gradients_of(learner)] for compute in (step, plain)
            )
            torch.testing.assert_close(found, expected)
            losses.add(round(float(found[0].sum()), 6))
    assert len(losses) >= least


@pytest.mark.parametrize(
    ("name", "options", "other", "other_options"),
    [
        ("maml", {}, "l2l-maml", {}),
        ("maml", {"order": 1}, "l2l-maml", {"order": 1}),
        ("maml", {"engine": "higher"}, "l2l-maml", {}),
        ("maml", {"adapted": "head"}, "l2l-anil", {}),
        (
            "maml",
            {"learn_inner_lr": "elementwise", "inner_steps": 2},
            "l2l-metasgd",
            {"inner_steps": 2},
        ),
    ],
    ids=["maml", "first order", "higher", "anil", "metasgd"],
)
def test_two_libraries_agree(name, options, other, other_options):
    """Two distributions' codes of one algorithm, the same weights in both: losses and
    meta-gradients, to 1e-9."""
    if absent := {name, other} - set(ADAPTERS):
        pytest.skip(f"not installed: {', '.join(absent)}")
    torch.manual_seed(0)
    ours, theirs = make_learner(name, **options), make_learner(other, **other_options)
    with torch.no_grad():
        for parameter, same in zip(theirs.parameters(), ours.parameters(), strict=True):
            parameter.copy_(same)
    episodes = tiny_episodes(TASK, 3)
    gradients = [
        checks.meta_batch(learner, TASK.loss, Execution(), episodes) for learner in (theirs, ours)
    ]
    torch.testing.assert_close(
        *[list(found.values()) for found in gradients], rtol=1e-9, atol=1e-12
    )

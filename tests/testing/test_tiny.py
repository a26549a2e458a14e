import subprocess
import sys

import pytest
import torch

import fsl_core as fsl
from fsl_core.testing import (
    GradientSteps,
    TinyBackbone,
    double_precision,
    tiny_episodes,
    tiny_task,
)


@pytest.mark.parametrize(
    ("kind", "rows", "label_shape"), [("classification", (6, 9), ()), ("regression", (5, 3), (2,))]
)
def test_episodes_have_the_shape_of_their_task(kind, rows, label_shape):
    task = tiny_task(kind)
    with double_precision():
        episodes = tiny_episodes(task, 4)
    assert episodes.support.x.shape == (4, rows[0], *task.input_shape)
    assert episodes.support.y.shape == (4, rows[0], *label_shape)
    assert episodes.query.y.shape == (4, rows[1], *label_shape)
    assert episodes.support.x.dtype == torch.float64
    assert episodes.id.tolist() == [0, 1, 2, 3]


def test_labels_are_sorted_and_episodes_repeatable():
    first, again = (tiny_episodes(tiny_task(), 2) for _ in range(2))
    assert first.support.y[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(first.query.x, again.query.x)
    assert not torch.equal(first.query.x, tiny_episodes(tiny_task(), 2, seed=1).query.x)


@pytest.mark.parametrize("norm", ["none", "transductive"])
def test_backbone(norm):
    backbone = TinyBackbone(norm)
    assert backbone(tiny_episodes(tiny_task(), 1).support.x[0]).shape == (6, backbone.feature_dim)


def test_the_core_itself_needs_no_pytest():
    code = "import sys, fsl_core.builtin.conv4, fsl_core.builtin.uniform; print('pytest' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_gradient_steps_leave_frozen_weights_alone():
    task = tiny_task()
    with double_precision():
        backbone = TinyBackbone()
        backbone.conv.requires_grad_(False)
        learner = fsl.Learner(backbone, GradientSteps(task, backbone))
        (episode,) = tiny_episodes(task, 1).unbatch()
        seen = []
        backbone.conv.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
        predict = learner.adapt(episode)
        seen.clear()
        predict(episode.query.x)
    assert torch.equal(seen[0], backbone.conv.weight)
    weights = fsl.Functional(backbone, learner.adapter.head).weights
    left_out = set(weights) - set(learner.adapter.names)
    assert left_out == {"backbone.conv.weight", "backbone.conv.bias"}

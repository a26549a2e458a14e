"""Backbones against learn2learn's own modules, and what the engine may do with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.choice import Setting, settle, why_not_vectorized
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.testing import double_precision
from fsl_learn2learn.backbones import L2lCnn4, ResNet12, Wrn28


def task(*input_shape: int) -> fsl.TaskShape:
    return fsl.TaskShape("classification", 3, 2, 2, input_shape, 3)


def episodes(shape: fsl.TaskShape, count: int) -> fsl.Episode:
    def draw() -> fsl.LabelledSet:
        y = torch.arange(shape.n_way).repeat_interleave(2).expand(count, -1)
        return fsl.LabelledSet(torch.rand(count, y.shape[1], *shape.input_shape), y)

    return fsl.Episode(draw(), draw(), torch.arange(count))


@pytest.mark.parametrize(
    ("make", "options", "input_shape", "feature_dim"),
    [
        (L2lCnn4, {}, (3, 84, 84), 1600),
        (L2lCnn4, {"channels": 4, "layers": 2}, (1, 28, 28), 4),
        (L2lCnn4, {"channels": 4, "max_pool": False}, (1, 28, 28), 16),
        (ResNet12, {}, (3, 84, 84), 640),
        (ResNet12, {"wider": False, "avg_pool": False}, (3, 32, 32), 2048),
        (Wrn28, {}, (3, 84, 84), 640),
    ],
)
def test_feature_dim(make, options, input_shape, feature_dim):
    backbone = make(task(*input_shape), **options)
    assert backbone.feature_dim == feature_dim
    with torch.no_grad():
        features = backbone(torch.rand(1, *input_shape))
    assert features.shape == (1, feature_dim)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["CNN4Backbone", "ResNet12Backbone"])
def test_transductive_is_learn2learns_batchnorm_in_training_mode(name, l2l):
    """The same weights in both; float64."""
    with double_precision():
        shape = task(3, 32, 32)
        ours = (
            L2lCnn4(shape, channels=8)
            if name == "CNN4Backbone"
            else ResNet12(shape, wider=False, avg_pool=False)
        )
        options = (
            {"hidden_size": 8}
            if name == "CNN4Backbone"
            else {"avg_pool": False, "wider": False, "dropblock_dropout": 0.0}
        )
        theirs = getattr(l2l.vision.models, name)(**options)
        for found, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
            wanted.data.copy_(found.data.uniform_(-0.3, 0.3))
        x = torch.rand(4, 3, 32, 32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-9, atol=1e-12)
        assert not (ours(x) - theirs.eval()(x)).abs().max() < 1e-3


def test_start_values_are_learn2learns(l2l):
    shape = task(3, 84, 84)
    torch.manual_seed(1)
    ours = dict(L2lCnn4(shape).named_parameters())
    scales = torch.cat([value for name, value in ours.items() if name.endswith("scale")])
    assert 0 <= scales.min() < 0.1
    assert 0.9 < scales.max() <= 1
    torch.manual_seed(1)
    theirs = l2l.vision.models.CNN4Backbone()
    assert torch.equal(ours["net.0.conv.weight"], theirs[0].conv.weight)


class OneStep(fsl.Adapter):
    """A gradient step on backbone and class means, for a second derivative of every layer."""

    name = "one-step"

    def __init__(self, shape: fsl.TaskShape):
        super().__init__()
        self.centroid, self.shape = NearestCentroid(shape), shape

    def adapt(self, backbone, support):
        weights = dict(backbone.named_parameters())

        def support_loss(weights):
            z = fsl.call_with(backbone, weights, support.x, keep=True)
            return (z * torch.arange(z.shape[1]).sin()).mean(1).add(-support.y).square().mean()

        gradients = torch.func.grad(support_loss)(weights)
        fast = {name: weight - 0.1 * gradients[name] for name, weight in weights.items()}
        return self.centroid.adapt(lambda x: fsl.call_with(backbone, fast, x), support)


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        *((L2lCnn4, norm) for norm in ("transductive", "support", "group", "none")),
        (ResNet12, "transductive"),
    ],
)
def test_a_meta_batch_as_one_batch_is_the_loop(make, norm):
    """Under vmap, second derivatives too; of the large network first ones, for time. float64,
    1e-9."""
    with double_precision():
        torch.manual_seed(0)
        shape = task(3, 16, 16)
        options = (
            {"channels": 4, "layers": 2} if make is L2lCnn4 else {"avg_pool": False, "wider": False}
        )
        learner = fsl.Learner(
            make(shape, norm=norm, **options),
            (OneStep if make is L2lCnn4 else NearestCentroid)(shape),
        )
        assert why_not_vectorized(learner) is None
        batch = episodes(shape, 2)
        found = [_gradients(learner, Execution(mode), batch, shape) for mode in ("loop", "vmap")]
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


def test_own_batchnorm_is_sent_to_the_loop():
    shape = task(3, 16, 16)
    learner = fsl.Learner(
        L2lCnn4(shape, channels=4, layers=2, norm="batchnorm"), NearestCentroid(shape)
    )
    setting = Setting(learner, Uniform(), episodes(shape, 2), shape.loss)
    choice = settle(Execution("vmap"), setting)
    assert choice.execution.mode == "loop"
    assert "is a BatchNorm2d, whose second derivatives are wrong under vmap" in choice.reason
    norms = [m for n, m in learner.backbone.named_modules() if n.endswith("normalize")]
    assert [type(norm) for norm in norms] == [nn.BatchNorm2d] * 2


def test_own_batchnorm_keeps_no_statistics():
    shape = task(3, 16, 16)
    backbone = L2lCnn4(shape, channels=4, layers=2, norm="batchnorm")
    x = torch.rand(5, 3, 16, 16)
    first = backbone(x)
    assert not list(backbone.buffers())
    assert torch.equal(backbone.eval()(x), first)
    other = L2lCnn4(shape, channels=4, layers=2, norm="transductive")
    for new, known in zip(other.parameters(), backbone.parameters(), strict=True):
        new.data.copy_(known.data)
    torch.testing.assert_close(other(x), first)


def test_running_statistics_belong_to_the_outer_loop():
    backbone = L2lCnn4(task(3, 16, 16), channels=4, layers=2, norm="running")
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train()(torch.rand(5, 3, 16, 16))
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())


@pytest.mark.parametrize(
    ("make", "input_shape", "message"),
    [
        (
            L2lCnn4,
            (3, 8, 8),
            r"l2l-cnn4: pictures of shape \(3, 8, 8\) do not pass through it. At least 16x16 pixels, or fewer layers",
        ),
        (ResNet12, (3, 32, 32), "At least 80x80 pixels, or 16x16 with avg_pool: false"),
        (Wrn28, (1, 84, 84), "3 channels, at least 81x81 pixels"),
        (Wrn28, (3, 28, 28), "3 channels, at least 81x81 pixels"),
        (ResNet12, (2,), r"resnet12: items of shape \(2,\). Expected pictures"),
    ],
)
def test_pictures_that_do_not_fit(make, input_shape, message):
    with pytest.raises(ValueError, match=message):
        make(task(*input_shape))


def _gradients(
    learner: fsl.Learner, execution: Execution, batch: fsl.Episode, shape: fsl.TaskShape
):
    MetaGradient(learner, Uniform(), shape.loss, execution)(batch)
    return [p.grad.clone() for p in learner.parameters()]

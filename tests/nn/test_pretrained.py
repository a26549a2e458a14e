"""Networks trained elsewhere: preprocessing, norms held still, layers cut, parts trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.assembly.trials.made_up import made_up_episodes
from fsl_core.builtin.uniform import Uniform
from fsl_core.data.groups import as_groups
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.testing import GradientSteps, checks
from fsl_core.training.outer_loop import move_running_statistics

TASK = fsl.TaskShape("classification", 3, 2, 2, (3, 8, 8), 3)
STILL = fsl.Preprocessing(8, [0.0] * 3, [1.0] * 3)

pytestmark = pytest.mark.usefixtures("float64")


def block(channels_in: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.Softplus())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layer1, self.layer2 = block(3, 4), block(4, 5), block(5, 6)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        if x.shape[2] < 2:  # torch.fx could not follow this
            raise ValueError("too small")
        return self.layer2(self.layer1(self.stem(x))).mean((2, 3))


def backbone(**options):
    return fsl.PretrainedBackbone((3, 8, 8), Net(), STILL.double(), **options)


def test_preprocessing_is_a_bicubic_resize_and_the_networks_mean_and_deviation():
    x = torch.rand(2, 3, 5, 9)
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    resized = F.interpolate(x, (12, 12), mode="bicubic", antialias=True)
    expected = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = fsl.Preprocessing(12, mean, std)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # weights are made in float32
    grey = fsl.Preprocessing(12, mean, std)(x[:, :1])
    torch.testing.assert_close(grey, fsl.Preprocessing(12, mean, std)(x[:, :1].repeat(1, 3, 1, 1)))
    same = torch.rand(2, 3, 12, 12)
    assert torch.equal(fsl.Preprocessing(12, [0.0] * 3, [1.0] * 3)(same), same)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_norms_stay_at_the_averages_of_the_weights(mode):
    found = backbone()
    x = torch.rand(4, 3, 8, 8)
    expected = Net()
    own = dict(expected.named_buffers())
    torch.manual_seed(0)
    found, expected = backbone(), (torch.manual_seed(0), Net().eval())[1]
    before = {name: b.clone() for name, b in found.named_buffers()}
    getattr(found, mode)()
    torch.testing.assert_close(found(x), expected(x), rtol=0, atol=1e-12)
    move_running_statistics(
        fsl.Learner(found, GradientSteps(TASK, found)),
        as_groups(fsl.Episode(fsl.LabelledSet(x[None], x), None, torch.zeros(1))),
    )
    for name, buffer in found.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert own


def test_running_norms_are_moved_by_the_outer_loop():
    found = backbone(norm="running")
    before = {name: b.clone() for name, b in found.named_buffers() if "running" in name}
    x = torch.rand(4, 3, 8, 8)
    move_running_statistics(
        fsl.Learner(found, GradientSteps(TASK, found)),
        as_groups(fsl.Episode(fsl.LabelledSet(x[None], x), None, torch.zeros(1))),
    )
    now = dict(found.named_buffers())
    assert all(not torch.equal(now[name], buffer) for name, buffer in before.items())
    assert len(before) == 6


def test_a_layer_is_cut_at_and_what_follows_is_dropped():
    torch.manual_seed(0)
    cut = backbone(layer="layer1")
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(cut(x), net.layer1(net.stem(x)).mean((2, 3)))
    assert cut.feature_dim == 5
    assert not [name for name, _ in cut.named_parameters() if "layer2" in name]
    assert [name for name, _ in cut.named_parameters() if "layer1" in name]
    with pytest.raises(ValueError, match=r"layer: there is no 'layer3'\. Did you mean 'layer2'\?"):
        backbone(layer="layer3")


def test_patterns_say_what_is_trained():
    trained = backbone(train=["layer2.*", "*.1.*"])
    moved = [name for name, p in trained.named_parameters() if p.requires_grad]
    assert moved == [
        *("net.stem.1.scale", "net.stem.1.shift", "net.layer1.1.scale", "net.layer1.1.shift"),
        *("net.layer2.0.weight", "net.layer2.1.scale", "net.layer2.1.shift"),
    ]
    assert not any(p.requires_grad for p in backbone(train=[]).parameters())
    with pytest.raises(
        ValueError, match=r"train: 'layre2\.\*' matches no parameter\. .*layer1\.\*"
    ):
        backbone(train=["layre2.*"])


@pytest.mark.parametrize("shape", [(3,), (2, 8, 8)])
def test_items_that_are_not_pictures_are_refused(shape):
    with pytest.raises(ValueError, match="Pictures, .1 or 3, height, width."):
        fsl.PretrainedBackbone(shape, Net(), STILL)


class Ticks(nn.Module):
    def forward(self, x):
        return x.flatten(2).mT if x.shape[1] == 3 else x[..., None]


def test_tokens_are_averaged_and_other_shapes_refused():
    found = fsl.PretrainedBackbone((3, 8, 8), Ticks(), STILL)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(found(x), x.mean((2, 3)))


@pytest.mark.parametrize("train", [None, ["layer2.*"]])
def test_gradient_steps_through_it_are_those_of_the_loop_in_every_execution(train):
    """Frozen layers are in no inner loop: their weights have no fast twin."""
    net = backbone(train=train)
    learner = fsl.Learner(net, GradientSteps(TASK, net))
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert not any(f"backbone.{name}" in learner.adapter.names for name in frozen)
    assert bool(frozen) == bool(train)
    episodes = _stacked(made_up_episodes(TASK, 3))
    found = {}
    for mode in ("loop", "vmap"):
        learner.zero_grad()
        MetaGradient(learner, Uniform(), TASK.loss, Execution(mode))(episodes)
        found[mode] = [p.grad.clone() for p in learner.parameters() if p.requires_grad]
    for one, other in zip(found["loop"], found["vmap"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    gradients = {n: p.grad for n, p in learner.named_parameters()}

    def value():
        losses = [learner.objective(e, TASK.loss)[0] for e in episodes.unbatch()]
        return torch.stack(losses).mean().item()

    trained = {n: g for n, g in gradients.items() if g is not None}
    assert not checks.wrong_slopes(value, learner, trained)


def _stacked(episodes):
    def stack(*tensors):
        return (
            torch.stack(tensors).double()
            if tensors[0].is_floating_point()
            else torch.stack(tensors)
        )

    sets = [
        fsl.LabelledSet(*map(stack, *(getattr(e, part) for e in episodes)))
        for part in ("support", "query")
    ]
    return fsl.Episode(*sets, stack(*(e.id for e in episodes)))

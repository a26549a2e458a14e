"""Backbone and head as one function of named weights."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import fsl_core as fsl
from fsl_core.nn.forward import checkpointed
from fsl_core.testing import TinyBackbone, double_precision, tiny_task


class Counting(nn.Module):
    """A layer that moves what it keeps, as torch's BatchNorm does."""

    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(50, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        return self.net(x)


@pytest.fixture(autouse=True)
def precision():
    with double_precision():
        yield


@pytest.fixture
def x():
    return torch.randn(6, 2, 5, 5)


def test_weights_are_those_of_the_backbone_and_then_of_the_head():
    backbone, head = TinyBackbone(), nn.Linear(5, 3)
    weights = fsl.Functional(backbone, head).weights
    assert list(weights) == [
        *(f"backbone.{name}" for name, _ in backbone.named_parameters()),
        "head.weight",
        "head.bias",
    ]
    assert weights["head.weight"] is head.weight


@pytest.mark.parametrize("wrapped", [False, True])
def test_under_autocast_the_head_is_in_float32(wrapped):
    head = nn.Linear(5, 3).float()
    net = fsl.Functional(nn.Identity(), nn.Sequential(head) if wrapped else head)
    features = torch.randn(6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = net(net.weights, features)
    assert torch.equal(found, head(features.float()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
def test_it_is_the_head_of_the_backbone_under_other_weights(bias, wrapped, x):
    backbone, head = TinyBackbone("transductive"), nn.Linear(5, 3, bias=bias)
    net = fsl.Functional(backbone, nn.Sequential(head) if wrapped else head)
    own = net(net.weights, x)
    assert torch.equal(own, head(backbone(x)))
    other = {name: weight + 0.1 for name, weight in net.weights.items()}
    found, features = net(other, x), net.features(other, x)
    assert torch.equal(found, net.head(other, features))
    assert torch.equal(found, net.predictor(other)(x))
    assert not torch.allclose(found, own)
    assert torch.equal(net(net.weights, x), own)
    with torch.no_grad():
        for weight in net.weights.values():
            weight.add_(0.1)
    assert torch.allclose(head(backbone(x)), found)


@pytest.mark.parametrize("recomputed", [False, True])
def test_no_call_moves_what_a_layer_keeps(recomputed, x):
    backbone = Counting()
    net = fsl.Functional(backbone, nn.Linear(3, 2))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with checkpointed(recomputed):
        net(net.weights, x).sum().backward()
    grad(lambda weights: net(weights, x).sum())(net.weights)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_buffers_may_be_given_by_name(x):
    layer = nn.BatchNorm1d(3).eval()
    mean = torch.ones(3)
    found = fsl.call_with(layer, {"running_mean": mean}, torch.ones(2, 3))
    assert torch.equal(found, torch.zeros(2, 3))
    assert not layer.running_mean.any()


def test_second_derivatives_are_exact_under_vmap(x):
    net = fsl.Functional(TinyBackbone("transductive"), nn.Linear(5, 3))
    weights = {name: weight.detach() for name, weight in net.weights.items()}

    def meta_loss(weights, x):
        slope = grad(lambda w: net(w, x).square().sum())(weights)
        return net({n: w - 0.1 * slope[n] for n, w in weights.items()}, x).square().sum()

    tasks = torch.stack([x, 2 * x])
    together = vmap(grad(meta_loss), (None, 0))(weights, tasks)
    for i, task in enumerate(tasks):
        alone = grad(meta_loss)(weights, task)
        assert all(torch.allclose(together[n][i], alone[n], rtol=1e-9) for n in alone)


def test_words_and_patterns_choose_what_is_adapted():
    backbone = TinyBackbone()
    net = fsl.Functional(backbone, nn.Linear(5, tiny_task().output_dim))
    names = tuple(net.weights)
    assert net.adapted() == names
    assert net.adapted("head") == ("head.weight", "head.bias")
    assert net.adapted("body") == names[:-2]
    assert net.adapted(["head.bias", "*.conv.*"]) == (
        "backbone.conv.weight",
        "backbone.conv.bias",
        "head.bias",
    )
    assert net.adapted("head", without=["head.bias"]) == ("head.weight",)
    backbone.linear.requires_grad_(False)
    assert "backbone.linear.weight" not in net.adapted()
    assert net.adapted(frozen=True) == names


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            "layer4.*",
            r"layers: 'layer4\.\*' matches no parameter\. all, head, body, or patterns ov",
        ),
        ([], r"layers: an empty list\. all, head, body, or patterns over backbone\.conv\.weight, "),
        ("*.linear.*", r"'\*\.linear\.\*' matches frozen parameters alone, backbone\.linear\.we"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(patterns, message):
    backbone = TinyBackbone()
    backbone.linear.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        fsl.Functional(backbone, nn.Linear(5, 3)).adapted(patterns, option="layers")

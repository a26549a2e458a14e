"""`replace_norms`: layers of torch that keep statistics, replaced by a named policy."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.nn.norms import collect_statistics, support_reference

pytestmark = pytest.mark.usefixtures("float64")


def used(layer: nn.Module, *shape: int) -> nn.Module:
    """A layer with weights and running averages that are not those of a fresh one."""
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    layer.train()
    for _ in range(3):
        layer(1 + 2 * torch.randn(*shape))
    return layer


LAYERS = [
    (nn.BatchNorm1d(4), (6, 4)),
    (nn.BatchNorm1d(4, affine=False), (6, 4, 5)),
    (nn.BatchNorm2d(4, eps=0.01), (6, 4, 3, 3)),
    (nn.BatchNorm3d(4), (6, 4, 2, 3, 2)),
    (nn.SyncBatchNorm(4), (6, 4, 3, 3)),
]
KINDS = pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=[type(layer).__name__ for layer, _ in LAYERS]
)


def plain(layer: nn.Module) -> nn.Module:
    """SyncBatchNorm computes on one GPU or more alone; here it is its 2d sister."""
    if not isinstance(layer, nn.SyncBatchNorm):
        return copy.deepcopy(layer).double()
    sister = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    sister.load_state_dict(layer.state_dict())
    return sister


@KINDS
def test_transductive_is_the_layer_in_training_mode(layer: nn.Module, shape: tuple[int, ...]):
    layer = used(plain(layer), *shape)
    x = torch.randn(*shape)
    expected = layer(x)
    new = fsl.replace_norms(layer, "transductive")
    assert isinstance(new, fsl.Norm)
    for mode in (True, False):
        torch.testing.assert_close(new.train(mode)(x), expected)


@KINDS
def test_running_is_the_layer_in_evaluation_mode(layer: nn.Module, shape: tuple[int, ...]):
    layer = used(plain(layer), *shape)
    x, twin = torch.randn(*shape), copy.deepcopy(layer)
    expected = layer.eval()(x)
    new = fsl.replace_norms(layer, "running").train()
    torch.testing.assert_close(new(x), expected)
    twin.train()(x)
    with collect_statistics():
        new(x)
    torch.testing.assert_close(new.running_mean, twin.running_mean)
    torch.testing.assert_close(new.running_var, twin.running_var)


def test_a_synchronised_layer_is_replaced():
    layer = nn.SyncBatchNorm(4, momentum=0.3)
    new = fsl.replace_norms(layer, "running")
    assert isinstance(new, fsl.Norm)
    assert new.scale is layer.weight
    assert (new.momentum, new.eps) == (0.3, layer.eps)
    assert new.running_mean is layer.running_mean


def test_a_whole_network_in_one_line():
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(
        nn.Linear(3, 4), shared, nn.Sequential(nn.Linear(4, 4), shared, nn.LayerNorm(4))
    )
    assert fsl.replace_norms(net, "transductive") is net
    assert isinstance(net[1], fsl.Norm)
    assert net[1] is net[2][1]
    assert isinstance(net[2][2], nn.LayerNorm)
    assert {n for n, _ in net.named_parameters()} >= {"1.scale", "1.shift"}
    x = torch.randn(6, 3)
    assert net(x).shape == (6, 4)


def test_frozen_layers_stay_frozen_and_none_has_no_weights():
    layer = nn.BatchNorm2d(4).requires_grad_(False).eval()
    new = fsl.replace_norms(layer, "group")
    assert not any(p.requires_grad for p in new.parameters())
    assert not new.training
    without = fsl.replace_norms(nn.BatchNorm2d(4, affine=False), "transductive")
    assert list(without.parameters()) == []
    assert not without.state_dict()
    assert list(fsl.replace_norms(nn.BatchNorm2d(4), "none").parameters()) == []


def test_the_support_policy_works_inside_a_normed_backbone():
    class Net(fsl.NormedBackbone):
        def __init__(self):
            super().__init__("support")
            self.feature_dim = 4
            net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.net = fsl.replace_norms(net, "support")

        def features(self, x):
            return self.net(x)

    net, support, query = Net(), torch.randn(5, 3), torch.randn(7, 3)
    with support_reference(support):
        together = net(query)
        alone = torch.cat([net(query[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("policy", ["transductive", "support", "group"])
def test_instance_norm_stops_tracking(policy: str):
    layer = used(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 6, 4, 3, 3)
    x = torch.randn(6, 4, 3, 3)
    expected = layer.train()(x)
    new = fsl.replace_norms(layer, policy)
    torch.testing.assert_close(new.eval()(x), expected)
    assert list(new.buffers()) == []


def test_instance_norm_under_running_is_itself_in_evaluation_mode():
    layer = used(nn.InstanceNorm2d(4, track_running_stats=True), 6, 4, 3, 3)
    x = torch.randn(6, 4, 3, 3)
    expected = layer.eval()(x)
    torch.testing.assert_close(fsl.replace_norms(layer, "running")(x), expected)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("net", "policy", "message"),
    [
        (
            nn.Sequential(Activated(4)),
            "group",
            r"^0: a Activated is derived from a layer that is replaced, and may do more\. One of Ba",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(4, momentum=None)),
            "running",
            r"^0: momentum None, the mean of all batches\. A momentum as an argument of replace_norms$",
        ),
        (nn.BatchNorm1d(4), "batch", r"norm: 'batch' is not a policy"),
    ],
)
def test_what_cannot_be_replaced_is_refused(net: nn.Module, policy: str, message: str):
    with pytest.raises(ValueError, match=message):
        fsl.replace_norms(net, policy)
    if policy == "running":
        assert fsl.replace_norms(net, policy, momentum=0.2)[0].momentum == 0.2

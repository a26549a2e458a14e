from dataclasses import replace

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4

TASK = fsl.TaskShape("classification", 5, 1, 15, (3, 28, 28), 5)


def test_parameters_are_those_of_the_hypermaml_code():
    """Conv4, 64 channels, RGB 28x28: 113,088 parameters, as counted in the official HyperMAML
    code."""
    assert sum(p.numel() for p in Conv4(TASK).parameters()) == 113_088


@pytest.mark.parametrize(
    ("shape", "options", "feature_dim"),
    [
        ((3, 28, 28), {}, 64),
        ((1, 28, 28), {}, 64),
        ((3, 84, 84), {}, 1600),
        ((3, 84, 84), {"channels": 32}, 800),
        ((3, 84, 84), {"readout": "mean"}, 64),
        ((3, 16, 40), {"channels": 8}, 16),
        ((1, 8, 9), {"channels": 8, "blocks": 2}, 32),
        ((1, 28, 28), {"downsample": "stride"}, 256),
        ((1, 28, 28), {"downsample": "stride", "readout": "mean"}, 64),
        ((1, 9, 17), {"channels": 8, "downsample": "stride", "blocks": 2}, 120),
    ],
)
def test_feature_dim(shape, options, feature_dim):
    backbone = Conv4(replace(TASK, input_shape=shape), **options)
    assert backbone.feature_dim == feature_dim
    assert backbone(torch.zeros(2, *shape)).shape == (2, feature_dim)


@pytest.mark.parametrize(
    "norm", ["transductive", "support", "running", "ordinary", "group", "none"]
)
def test_every_norm_policy(norm):
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    learner = fsl.Learner(
        Conv4(replace(TASK, input_shape=(1, 16, 16)), channels=8, norm=norm), OneFeature()
    )
    assert learner(fsl.LabelledSet(x, torch.arange(4)), x).isfinite().all()


class OneFeature(fsl.Adapter):
    def adapt(self, backbone, support):
        return lambda x: backbone(x)[:, :1]


def test_start_values():
    torch.manual_seed(0)
    block = Conv4(TASK).blocks[1]
    conv, norm = block.conv, block.norm
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    assert norm.scale.eq(1).all()


def test_parameters_are_those_of_mamls_omniglot_code():
    """Four 3x3 convolutions of 64 filters with biases, and a shift for each channel."""
    options = {"readout": "mean", "downsample": "stride", "init": "xavier", "norm_scale": False}
    backbone = Conv4(replace(TASK, input_shape=(1, 28, 28)), norm_eps=1e-3, **options)
    assert sum(p.numel() for p in backbone.parameters()) == 9 * 64 * (1 + 3 * 64) + 4 * 64 + 4 * 64
    assert {block.norm.eps for block in backbone.blocks} == {1e-3}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 28, 12),
            r"conv4: pictures of 28x12, of which 4 poolings leave no pixel\. At least 16x16, or fewer blocks",
        ),
        ((7,), r"conv4: items of shape \(7,\)\. Expected pictures, \(channels, height, width\)"),
    ],
)
def test_unfit_items_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Conv4(replace(TASK, input_shape=shape))

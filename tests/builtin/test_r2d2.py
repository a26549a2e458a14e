from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.r2d2 import R2d2
from fsl_core.testing import BackboneContract

TASK = fsl.TaskShape("classification", 5, 1, 3, (3, 32, 32), 5)


class TestR2d2(BackboneContract):
    input_shape = (1, 17, 16)

    def make(self, task):
        return R2d2(task, widths=(3, 4, 4, 5))


def test_sizes_are_those_of_the_paper():
    """3 x 3 places of 384 + 512 filters at 32x32; 64 filters at 84x84 give 9 x 9 x 128."""
    encoder = R2d2(TASK)
    assert encoder.feature_dim == 8064
    widths = (3, 96, 192, 384, 512)
    expected = sum(9 * i * o + 3 * o for i, o in pairwise(widths))
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert R2d2(replace(TASK, input_shape=(3, 84, 84)), widths=(64,) * 4).feature_dim == 10_368


@pytest.mark.usefixtures("float64")
def test_values_are_those_of_torchs_layers_in_training_and_evaluation():
    encoder = R2d2(replace(TASK, input_shape=(2, 17, 24)), widths=(3, 4, 5, 6))
    support, query = torch.randn(4, 2, 17, 24), torch.randn(6, 2, 17, 24)
    third, fourth = nn.Sequential(), nn.Sequential()
    blocks = [*encoder.maps, encoder.last]
    for i, block in enumerate(blocks):
        part, norm = fourth if i == 3 else third, nn.BatchNorm2d(block.conv.out_channels)
        norm.load_state_dict({"weight": block.norm.scale, "bias": block.norm.shift}, strict=False)
        part.extend([block.conv, norm, nn.MaxPool2d(2, 1 if i == 3 else 2), nn.LeakyReLU(0.1)])

    def theirs(x):
        maps = third(x)
        return torch.cat([nn.MaxPool2d(2, 1)(maps).flatten(1), fourth(maps).flatten(1)], 1)

    expected = theirs(torch.cat([support, query]))
    learner = fsl.Learner(encoder, Features())
    torch.testing.assert_close(learner(fsl.LabelledSet(support, torch.arange(4)), query), expected)
    for module in (third, fourth, learner):
        module.eval()
    for block, layer in zip(blocks, [*third, *fourth][1::4], strict=True):
        block.norm.running_mean, block.norm.running_var = layer.running_mean, layer.running_var
    found = learner(fsl.LabelledSet(support, torch.arange(4)), query)
    torch.testing.assert_close(found, theirs(torch.cat([support, query])))


class Features(fsl.Adapter):
    """Predicts the features of support and query set, asked for one after the other."""

    def adapt(self, backbone, support):
        return lambda x: torch.cat([backbone(support.x), backbone(x)])


def test_dropout_is_that_of_the_last_two_blocks():
    """Half of the numbers of a map that has no zero otherwise, in training alone."""
    torch.manual_seed(0)
    encoder = R2d2(TASK, widths=(4, 4, 32, 32), norm="none", dropout=0.5)
    features, kept = encoder(torch.randn(8, 3, 32, 32)), 9 * 32
    assert (features[:, kept:] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    encoder.eval()
    assert (encoder(torch.randn(8, 3, 32, 32)) != 0).all()


@pytest.mark.parametrize("shape", [(7,), (3, 15, 32)])
def test_unfit_items_are_refused(shape):
    with pytest.raises(ValueError, match=r"r2d2: items of shape .*\. Pictures, .* of 16x16 pixels"):
        R2d2(replace(TASK, input_shape=shape))

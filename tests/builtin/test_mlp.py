from dataclasses import replace

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.hooks.loader import load

SINE = fsl.TaskShape("regression", 1, 5, 10, (1,), 1)


def test_the_sinusoid_network():
    """1-40-40-1 with a linear head: 80 + 1640 + 41 parameters."""
    backbone = Mlp(SINE)
    assert backbone.feature_dim == 40
    assert sum(p.numel() for p in (*backbone.parameters(), *nn.Linear(40, 1).parameters())) == 1761


def test_values_are_those_of_its_layers():
    backbone, x = Mlp(replace(SINE, input_shape=(2, 3)), hidden=(5, 4)), torch.randn(7, 2, 3)
    first, second = (layer[0] for layer in backbone.layers)
    assert torch.equal(backbone(x), second(first(x.flatten(1)).relu()).relu())


def test_norms_belong_to_every_hidden_layer():
    backbone = Mlp(
        replace(SINE, input_shape=(1, 28, 28)), hidden=(256, 128, 64, 64), norm="transductive"
    )
    assert [m.policy for m in backbone.modules() if isinstance(m, fsl.Norm)] == ["transductive"] * 4
    assert backbone(torch.randn(3, 1, 28, 28)).shape == (3, 64)


def test_hidden_is_a_list_in_recipes():
    component = load(entry_points=False).catalogue.get("backbone", "mlp")
    section = component.options(name="mlp", hidden=[3, 2])
    assert component.build(section, task=SINE).feature_dim == 2
    for bad in ([], [0], "40"):
        with pytest.raises(ValueError, match="hidden"):
            component.options(name="mlp", hidden=bad)


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"mlp: hidden: \(\)\. 1 or more"):
        Mlp(SINE, hidden=())

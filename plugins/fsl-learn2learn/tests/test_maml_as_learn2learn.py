"""What learn2learn's own tests ask of MAML, Meta-SGD and GBML, asked of the adapter `maml` through
`shim.py`.

The published files pass, too, when they are given the shim in place of learn2learn; they are not
part of this repository.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fsl_core.hooks.loader import load
from fsl_core.testing import double_precision


@pytest.fixture(autouse=True)
def l2l():
    """learn2learn itself has no part in this."""


@pytest.fixture(scope="module")
def shim():
    if "maml" not in load().catalogue.names("adapter"):
        pytest.skip("fsl-maml is not installed")
    spec = importlib.util.spec_from_file_location(
        "learn2learn_shim", Path(__file__).parent / "shim.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


@pytest.fixture
def model() -> nn.Module:
    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3)
    net = nn.Sequential(*layers)
    net.register_buffer("unused", torch.zeros(2))
    return net


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 4)


@pytest.fixture(params=["MAML", "MetaSGD", "GBML"])
def algorithm(request, shim, model):
    """A function of first_order and further options."""

    def scale(weight):
        return lambda gradient: gradient

    options = {"transform": scale} if request.param == "GBML" else {}
    return lambda **more: getattr(shim.algorithms, request.param)(model, lr=0.05, **options, **more)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_clone_computes_what_the_model_does(algorithm, model, x, first_order):
    meta = algorithm(first_order=first_order)
    for clone in (meta.clone(), meta.clone()):
        assert (clone(x) - model(x)).norm() == 0


def test_the_first_order_gradient_is_that_of_the_adapted_copy(shim, model, x):
    clone = shim.MAML(model, lr=0.05, first_order=True).clone()
    for _ in range(3):
        clone.adapt(clone(x).norm())
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in zip(adapted.parameters(), clone.parameters(), strict=True):
            parameter.copy_(torch.as_tensor(value.detach()))
    assert not torch.equal(adapted[0].weight, model[0].weight)
    adapted(x).norm().backward()
    clone(x).norm().backward()
    for found, wanted in zip(model.parameters(), adapted.parameters(), strict=True):
        assert (found.grad - wanted.grad).norm() <= 1e-8


def test_the_second_order_gradient_is_that_of_torch_func(shim, model, x):
    clone = shim.MAML(model, lr=0.05).clone()
    for _ in range(2):
        clone.adapt(clone(x).norm())
    clone(x).square().sum().backward()

    def adapted_loss(weights):
        for _ in range(2):
            gradients = torch.func.grad(
                lambda w: torch.func.functional_call(model, w, (x,)).norm()
            )(weights)
            weights = {name: weight - 0.05 * gradients[name] for name, weight in weights.items()}
        return torch.func.functional_call(model, weights, (x,)).square().sum()

    expected = torch.func.grad(adapted_loss)(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_a_step_lowers_the_loss_and_the_graph_reaches_everything(algorithm, model, x):
    meta = algorithm()
    clone = meta.clone()
    loss = clone(x).norm(p=2)
    clone.adapt(loss)
    after = clone(x).norm(p=2)
    assert after < loss
    after.backward()
    for parameter in (*model.parameters(), *meta.parameters()):
        if parameter is not meta.adapter.head.weight and parameter is not meta.adapter.head.bias:
            assert parameter.grad.norm() > 0


def test_rates_are_learned_for_every_weight(shim, model):
    meta = shim.MetaSGD(model, lr=0.05)
    assert sum(p.numel() for p in meta.parameters()) == 2 * sum(
        p.numel() for p in model.parameters()
    )
    assert all((rate == 0.05).all() for rate in meta.lrs)


def test_unused_parameters_stay(algorithm, model):
    clone = algorithm().clone()
    before = [weight.detach().clone() for weight in clone.parameters()]
    clone.adapt(sum(p.norm(p=2) for p in clone.parameters()[::2]))
    moved = [
        not torch.equal(a, torch.as_tensor(b.detach()))
        for a, b in zip(before, clone.parameters(), strict=True)
    ]
    assert moved == [True, False] * 3
    sum(p.norm(p=2) for p in clone.parameters()[::2]).backward()


def test_frozen_parameters_stay(shim, model):
    model[2].weight.requires_grad = False
    clone = shim.MAML(model, lr=0.05).clone()
    with pytest.raises(RuntimeError, match="allow_nograd"):
        clone.adapt(sum(p.norm(p=2) for p in clone.parameters()))
    clone.adapt(sum(p.norm(p=2) for p in clone.parameters()), allow_nograd=True)
    sum(p.norm(p=2) for p in clone.parameters()).backward()
    assert model[2].weight.grad is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.equal(torch.as_tensor(clone.parameters()[2].detach()), model[2].weight)


def test_a_parameter_under_two_names_is_one(shim, x):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    clone = shim.MAML(model, lr=0.05).clone()
    loss = clone(x).norm()
    clone.adapt(loss)
    assert len(clone.parameters()) == 3
    after = clone(x).norm()
    assert after < loss
    after.backward()

    def loss_of(weights):
        return torch.func.functional_call(model, weights, (x,), tie_weights=True).norm()

    def adapted_loss(weights):
        gradients = torch.func.grad(loss_of)(weights)
        return loss_of({name: weight - 0.05 * gradients[name] for name, weight in weights.items()})

    expected = torch.func.grad(adapted_loss)(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)

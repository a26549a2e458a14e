"""Losses and meta-gradients of learn2learn's algorithms against torch.func, and what the adapters
keep learn2learn from doing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.hypergradients import FirstOrder
from fsl_core.errors import PluginError
from fsl_core.testing import double_precision, tiny_episodes, tiny_task
from fsl_core.testing.tiny import TinyBackbone
from fsl_learn2learn.gradient import L2lAnil, L2lGbml, L2lMaml, L2lMetaCurvature, L2lMetaSgd
from fsl_learn2learn.library import require_qpth
from fsl_learn2learn.metaoptnet import L2lMetaOptNet

TASK = tiny_task("classification")
LR, STEPS = 0.3, 3


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def check(adapter_of, adapted_by_hand) -> None:
    """Loss and gradient of every parameter, to 1e-9.

    adapted_by_hand: (weights of the learner, gradient of the support loss as a function of them) ->
    adapted weights.
    """
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = TinyBackbone("transductive")
        learner = fsl.Learner(backbone, adapter_of(backbone))
        episode = tiny_episodes(TASK, 1, seed).unbatch()[0]
        net = nn.ModuleDict({"backbone": backbone, "head": learner.adapter.head})

        def loss(weights, items, net=net):
            z = functional_call(net["backbone"], part(weights, "backbone."), (items.x,))
            return TASK.loss(
                functional_call(net["head"], part(weights, "adapter.head."), (z,)), items.y
            )

        def objective(weights, loss=loss, episode=episode):
            adapted = adapted_by_hand(weights, grad(lambda w: loss(w, episode.support)))
            return loss(adapted, episode.query)

        weights = {name: p.detach().clone() for name, p in learner.named_parameters()}
        found, _ = learner.objective(episode, TASK.loss)
        torch.testing.assert_close(found, objective(weights), rtol=1e-9, atol=1e-12)
        found.backward()
        for name, expected in grad(objective)(weights).items():
            torch.testing.assert_close(
                learner.get_parameter(name).grad, expected, rtol=1e-9, atol=1e-12, msg=name
            )


def part(weights, prefix: str):
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def fast(weights) -> list[str]:
    return [name for name in weights if name.startswith(("backbone.", "adapter.head."))]


@pytest.mark.parametrize("order", [1, 2])
def test_maml(order):
    def by_hand(weights, gradient):
        for _ in range(STEPS):
            g = (
                gradient(weights)
                if order == 2
                else {k: v.detach() for k, v in gradient(detached(weights)).items()}
            )
            weights = weights | {name: weights[name] - LR * g[name] for name in fast(weights)}
        return weights

    check(lambda backbone: L2lMaml(TASK, backbone, LR, STEPS, order=order), by_hand)


def detached(weights):
    return {name: weight.detach() for name, weight in weights.items()}


def test_anil():
    def by_hand(weights, gradient):
        for _ in range(STEPS):
            g = gradient(weights)
            weights = weights | {
                name: weights[name] - LR * g[name]
                for name in weights
                if name.startswith("adapter.head.")
            }
        return weights

    check(lambda backbone: L2lAnil(TASK, backbone, LR, STEPS), by_hand)


def test_metasgd():
    def by_hand(weights, gradient):
        for _ in range(STEPS):
            g = gradient(weights)
            rates = [weights[f"adapter.rates.{i}"] for i in range(len(fast(weights)))]
            weights = weights | {
                name: weights[name] - rate * g[name]
                for name, rate in zip(fast(weights), rates, strict=True)
            }
        return weights

    def adapter_of(backbone):
        adapter = L2lMetaSgd(TASK, backbone, LR, STEPS)
        for rate in adapter.rates:
            rate.data += 0.1 * torch.rand_like(rate)
        return adapter

    check(adapter_of, by_hand)


def stirred(adapter: fsl.Adapter) -> fsl.Adapter:
    """Its maps moved away from the identity."""
    for parameter in adapter.update.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapter


def transform_of(weights, i: int):
    return part(weights, f"adapter.update.transforms_modules.{i}.transform.")


def test_kronecker():
    """The gradient of a weight, as rows of (n, m) matrices G: L^T L G R^T R."""

    def by_hand(weights, gradient):
        for _ in range(STEPS):
            g, moved = gradient(weights), {}
            for i, name in enumerate(fast(weights)):
                shape = weights[name].shape
                n, m = {1: lambda s: (s[0], 1), 2: tuple, 4: lambda s: (s[1], s[2] * s[3])}[
                    len(shape)
                ](shape)
                left, right = (
                    transform_of(weights, i)[f"transform.{side}"] for side in ("left", "right")
                )
                update = left.T @ left @ g[name].reshape(-1, n, m) @ right.T @ right
                moved[name] = weights[name] - LR * update.reshape(shape)
            weights = weights | moved
        return weights

    check(
        lambda backbone: stirred(
            L2lGbml(TASK, backbone, "kronecker", inner_lr=LR, inner_steps=STEPS)
        ),
        by_hand,
    )


def test_meta_curvature():
    """One matrix for each axis of the gradient, that of a filter's pixels flattened."""

    def by_hand(weights, gradient):
        for _ in range(STEPS):
            g, moved = gradient(weights), {}
            for i, name in enumerate(fast(weights)):
                maps, value = transform_of(weights, i), g[name]
                if value.dim() == 1:
                    update = maps["mc"] * value
                elif value.dim() == 2:
                    update = torch.einsum("ia,ab,bo->io", maps["mc_in"], value, maps["mc_out"])
                else:
                    flat = value.flatten(2)
                    update = torch.einsum(
                        "ia,abf,bo,gf->iog", maps["mc_in"], flat, maps["mc_out"], maps["mc_f"]
                    ).view_as(value)
                moved[name] = weights[name] - LR * update
            weights = weights | moved
        return weights

    check(lambda backbone: stirred(L2lMetaCurvature(TASK, backbone, LR, STEPS)), by_hand)


def test_an_adapted_scale():
    """From the second step on the scale takes a step by itself before the weights do
    (Alpha-MAML)."""

    def by_hand(weights, gradient):
        names = fast(weights)
        scales = {
            name: weights[f"adapter.update.transforms_modules.{i}.transform.alpha"]
            for i, name in enumerate(names)
        }
        before = None
        for _ in range(STEPS):
            g = gradient(weights)
            if before is not None:  # d loss / d scale = -lr * gradient now * gradient then
                scales = {name: scales[name] + LR * LR * g[name] * before[name] for name in names}
            weights = weights | {
                name: weights[name] - LR * scales[name] * g[name] for name in names
            }
            before = g
        return weights

    def adapter_of(backbone):
        return stirred(
            L2lGbml(TASK, backbone, "scale", adapt_transform=True, inner_lr=LR, inner_steps=STEPS)
        )

    check(adapter_of, by_hand)


@pytest.mark.parametrize("adapter_class", [L2lMaml, L2lMetaSgd, L2lGbml, L2lMetaCurvature])
def test_buffers_of_a_foreign_backbone_stay(adapter_class):
    """learn2learn's clones share running averages with the module they are taken from."""
    backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    backbone.feature_dim = 27
    learner = fsl.Learner(backbone, adapter_class(TASK, backbone)).train()
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)[0].backward()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.named_buffers())


@pytest.mark.parametrize("adapter_class", [L2lMaml, L2lAnil, L2lMetaSgd, L2lGbml, L2lMetaCurvature])
def test_steps_after_one_another(adapter_class):
    learner = fsl.Learner(
        backbone := Conv4(TASK, channels=4, blocks=1), adapter_class(TASK, backbone, test_steps=4)
    )
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    assert len(learner.trajectory(episode)) == learner.adapter.inner_steps + 1
    losses = [
        TASK.loss(predict(episode.support.x), episode.support.y)
        for predict in learner.eval().trajectory(episode)
    ]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.0}, r"inner_lr: 0\.0\. A number above 0"),
        ({"inner_steps": -1}, r"inner_steps: -1\. A number from 0"),
        ({"order": 3}, r"order: 3\. 1 or 2"),
        ({"transform": "magic"}, r"transform: 'magic'\. 'meta-curvature', 'kronecker' or 'scale'"),
        ({"adapt_transform": True, "order": 1}, r"which learn2learn cannot\. order: 2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        L2lGbml(TASK, TinyBackbone(), **options)


def test_a_weight_that_no_transform_fits():
    backbone = nn.Conv1d(1, 1, 1)
    backbone.feature_dim = 1
    with pytest.raises(
        ValueError, match=r"l2l-gbml: a weight of shape \(1, 1, 1\)\. One, two or four axes"
    ):
        L2lGbml(TASK, backbone)


class TestMetaOptNet:
    @pytest.fixture(autouse=True)
    def _needs_qpth(self):
        try:
            require_qpth()
        except PluginError as error:
            pytest.skip(str(error))

    @pytest.mark.parametrize("normalize", [False, True])
    def test_its_dual_is_that_of_projected_gradients(self, normalize):
        """Accelerated projected gradients on the dual, by another route: the projection onto the
        constraints by bisection."""
        backbone = TinyBackbone()
        episode = tiny_episodes(TASK, 1).unbatch()[0]
        learner = fsl.Learner(
            backbone,
            L2lMetaOptNet(TASK, regularisation=0.1, max_iterations=40, normalize=normalize),
        )
        with torch.no_grad():
            found = learner.adapt(episode)(episode.query.x)
            z, q = backbone(episode.support.x), backbone(episode.query.x)
            if normalize:
                z, q = (a / a.norm(dim=1, keepdim=True) for a in (z, q))
        hot = fsl.one_hot(episode.support.y, 3)
        kernel = z @ z.T + torch.eye(len(z))
        step, a = 1 / torch.linalg.eigvalsh(kernel).max(), torch.zeros_like(hot)
        last, momentum = a, 1.0
        for _ in range(4000):
            new = project(a - step * (kernel @ a - hot), 0.1 * hot)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            a = new + (momentum - 1) / following * (new - last)
            last, momentum = new, following
        torch.testing.assert_close(found, q @ z.T @ last, rtol=1e-7, atol=1e-9)

    def test_regression_is_refused(self):
        with pytest.raises(
            ValueError, match=r"l2l-metaoptnet: regression episodes\. Classification"
        ):
            L2lMetaOptNet(tiny_task("regression"))


def project(a: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with a <= upper and rows that sum to zero: min(a + shift, upper), the
    shift of each row by bisection."""
    low, high = (torch.full((len(a), 1), side) for side in (-10.0, 10.0))
    for _ in range(60):
        middle = (low + high) / 2
        above = torch.minimum(a + middle, upper).sum(1, keepdim=True) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.minimum(a + (low + high) / 2, upper)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [L2lMaml, L2lAnil, L2lMetaSgd, L2lGbml, L2lMetaCurvature])
def test_frozen_weights_stay(kind, training):
    backbone = TinyBackbone("transductive")
    backbone.conv.requires_grad_(False)
    learner = fsl.Learner(backbone, kind(TASK, backbone, inner_steps=2)).train(training)
    episode, own, seen = tiny_episodes(TASK, 1).unbatch()[0], backbone.conv.weight.clone(), []
    backbone.conv.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    predict = learner.adapt(episode)
    seen.clear()
    found = predict(episode.query.x)
    assert torch.equal(seen[0], own)
    first = learner.trajectory(episode)[0]
    assert not torch.equal(first(episode.query.x), found)
    if training:
        found.sum().backward()
        reached = {n for n, p in learner.named_parameters() if p.grad is not None}
        assert "adapter.head.weight" in reached
        assert "backbone.linear.weight" in reached
        assert not any(name.startswith("backbone.conv.") for name in reached)


def test_a_frozen_weight_has_no_learned_rate():
    backbone = TinyBackbone("transductive")
    backbone.conv.requires_grad_(False)
    rates = L2lMetaSgd(TASK, backbone).rates
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert [r.shape for r in rates[:-2]] == [p.shape for p in trained]


def test_only_unrolled_can_differentiate_them():
    adapter = L2lMaml(TASK, TinyBackbone())
    assert FirstOrder().unfit(adapter) == (
        "learn2learn takes the inner steps, and differentiates them itself"
    )

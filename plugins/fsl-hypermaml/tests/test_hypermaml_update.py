"""The update of one task computed by hand with dense linear algebra, without autograd; ANIL by
torch.func.

Tolerance 1e-9 in float64: both routes compute the same real numbers in another order of operations.
"""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_hypermaml import HyperMaml

TASK = tiny_task()  # 3-way 2-shot


@pytest.fixture(autouse=True)
def _double_precision():
    with double_precision():
        yield


@pytest.fixture
def episode():
    return tiny_episodes(TASK, 1).unbatch()[0]


def make(progress=1.0, norm="transductive", **options):
    torch.manual_seed(1)
    backbone = TinyBackbone(norm)
    adapter = HyperMaml(
        TASK,
        backbone,
        **{"hidden_size": 7, "warmup": 0.2, "switch": 0.2, "inner_lr": 0.3} | options,
    )
    adapter.on_progress(progress)
    with torch.no_grad():
        adapter.head.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return fsl.Learner(backbone, adapter)


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def dense(weights, prefix, x):
    """Linear layers with ReLU between them, by their names in the adapter."""
    last = max(int(name.split(".")[-2]) for name in weights if name.startswith(prefix))
    for index in range(0, last + 1, 2):
        x = x @ weights[f"{prefix}.{index}.weight"].T + weights[f"{prefix}.{index}.bias"]
        x = x if index == last else np.maximum(x, 0)
    return x


def hypernetwork_by_hand(adapter, z, y):
    """(update of the weight, update of the bias) from features z (items, feature_dim) and labels
    y."""
    w, n_way = arrays(adapter), TASK.n_way
    if adapter.enhance:
        predictions = softmax(z @ w["head.weight"].T + w["head.bias"])
        z = np.hstack(
            [z, predictions, np.eye(n_way)[y] if adapter.labels == "one-hot" else y[:, None]]
        )
    by_class = [z[y == c] for c in range(n_way)]
    rows = np.stack(
        [items.mean(0) if adapter.aggregation == "mean" else items.ravel() for items in by_class]
    )
    if "hypernetwork.net.0.weight" in w:
        update = dense(w, "hypernetwork.net", rows)
        return update[:, :-1], update[:, -1]
    flat = rows.reshape(1, -1)
    return dense(w, "hypernetwork.weight", flat).reshape(n_way, -1), dense(
        w, "hypernetwork.bias", flat
    )[0]


def moved_by_hand(operator, old, update):
    return {"minus": old - update, "plus": old + update, "multiply": old * update}[operator]


def support_gradient_by_hand(weight, bias, z, y):
    """Of the mean cross-entropy of a linear head."""
    slope = (softmax(z @ weight.T + bias) - np.eye(len(bias))[y]) / len(y)
    return slope.T @ z, slope.sum(0)


def features_of(learner, x):
    return learner.backbone(x).detach().numpy()


OPTION_SETS = {
    "default": {},
    "index": {"labels": "index"},
    "embeddings alone": {"enhance": False},
    "concat": {"aggregation": "concat"},
    "flat": {"network": "flat"},
    "flat and concat": {"network": "flat", "aggregation": "concat", "labels": "index"},
    "plus": {"operator": "plus"},
    "multiply": {"operator": "multiply"},
    "two layers": {"layers": 2},
    "official 5-shot": {"labels": "index", "hidden_size": 11},
}


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_update_of_one_task(options, episode):
    learner = make(**options)
    adapter, w = learner.adapter, arrays(learner.adapter)
    z, y = features_of(learner, episode.support.x), episode.support.y.numpy()
    update = hypernetwork_by_hand(adapter, z, y)
    weight, bias = (
        moved_by_hand(adapter.operator, w[f"head.{k}"], d)
        for k, d in zip(("weight", "bias"), update, strict=True)
    )
    assert np.abs(weight - w["head.weight"]).max() > 1e-3  # it does something
    expected = features_of(learner, episode.query.x) @ weight.T + bias
    before, after = (
        predict(episode.query.x).detach().numpy() for predict in learner.trajectory(episode)
    )
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-9)
    universal = features_of(learner, episode.query.x) @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(before, universal, rtol=0, atol=1e-9)


@pytest.mark.parametrize("repeat_delta", ["once", "each-step"])
@pytest.mark.parametrize("operator", ["minus", "plus", "multiply"])
def test_mixture_of_steps_and_hypernetwork(operator, repeat_delta, episode):
    """At progress 0.25, a quarter into the switch, p = 0.75; `once` spreads (1 - p) * H over the
    three steps."""
    learner = make(progress=0.25, operator=operator, repeat_delta=repeat_delta, inner_steps=3)
    adapter, w = learner.adapter, arrays(learner.adapter)
    z, y = features_of(learner, episode.support.x), episode.support.y.numpy()
    universal = (w["head.weight"], w["head.bias"])
    moves = [
        moved_by_hand(operator, old, d) - old
        for old, d in zip(universal, hypernetwork_by_hand(adapter, z, y), strict=True)
    ]
    share, head = (1 if repeat_delta == "each-step" else 1 / 3), universal
    for _ in range(3):
        slopes = support_gradient_by_hand(*head, z, y)
        head = [
            old - 0.75 * 0.3 * g + 0.25 * share * m
            for old, g, m in zip(head, slopes, moves, strict=True)
        ]
    expected = features_of(learner, episode.query.x) @ head[0].T + head[1]
    predictors = learner.trajectory(episode)
    assert len(predictors) == 4
    np.testing.assert_allclose(
        predictors[-1](episode.query.x).detach().numpy(), expected, rtol=0, atol=1e-9
    )


def test_gradient_with_respect_to_the_universal_head(episode):
    """The official second gradient is d L(theta_1) / d theta_0 = (1 - inner_lr * Hessian) g_1, here
    by the dense Hessian."""
    learner = make(progress=0.0, gradient_target="universal", inner_steps=2)
    w = arrays(learner.adapter)
    z, y = features_of(learner, episode.support.x), episode.support.y.numpy()
    ones = np.hstack([z, np.ones((len(z), 1))])
    theta = np.hstack([w["head.weight"], w["head.bias"][:, None]])  # (n_way, feature_dim + 1)

    def slope(theta):
        return (softmax(ones @ theta.T) - np.eye(3)[y]).T @ ones / len(y)

    p = softmax(ones @ theta.T)
    curvature = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    hessian = np.einsum("ncd,ni,nj->cidj", curvature, ones, ones).reshape(
        theta.size, theta.size
    ) / len(y)
    first = theta - 0.3 * slope(theta)
    second = first - 0.3 * ((np.eye(theta.size) - 0.3 * hessian) @ slope(first).ravel()).reshape(
        theta.shape
    )
    expected = features_of(learner, episode.query.x) @ second[:, :-1].T + second[:, -1]
    found = learner.adapt(episode)(episode.query.x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    maml = make(progress=0.0, inner_steps=2).adapt(episode)(episode.query.x).detach().numpy()
    assert np.abs(found - maml).max() > 1e-6


@pytest.mark.parametrize("options", [{"inner_steps": 1}, {"inner_steps": 3, "order": 1}], ids=str)
def test_gradient_targets_agree(options, episode):
    """For one step, and for first order, where the steps before pass no gradient."""
    fast, universal = (
        make(progress=0.3, gradient_target=target, **options) for target in ("fast", "universal")
    )
    for one, other in zip(
        meta_gradient(fast, episode).values(),
        meta_gradient(universal, episode).values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def meta_gradient(learner, episode):
    loss, _ = learner.objective(episode, TASK.loss)
    parameters = dict(learner.named_parameters())
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def anil_loss(learner, steps, order):
    """Head steps on fixed features, as a function of all weights by name; an own reference in
    torch.func."""

    def objective(weights, episode):
        body = {
            name.removeprefix("backbone."): w
            for name, w in weights.items()
            if name.startswith("backbone.")
        }
        z, query = (
            functional_call(learner.backbone, body, (x,))
            for x in (episode.support.x, episode.query.x)
        )
        head = (weights["adapter.head.weight"], weights["adapter.head.bias"])
        for _ in range(steps):
            slopes = grad(lambda h: F.cross_entropy(F.linear(z, *h), episode.support.y))(head)
            slopes = [s.detach() for s in slopes] if order == 1 else slopes
            head = tuple(old - 0.3 * s for old, s in zip(head, slopes, strict=True))
        return F.cross_entropy(F.linear(query, *head), episode.query.y)

    return objective


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_warm_up_alone_is_anil(steps, order, episode):
    anil = {"warmup": 1.0, "switch": 0.0, "evaluate_with": "current"}
    learner = make(progress=0.9, **anil, inner_steps=steps, order=order)
    reference = grad(anil_loss(learner, steps, order))(dict(learner.named_parameters()), episode)
    for name, gradient in meta_gradient(learner, episode).items():
        torch.testing.assert_close(
            gradient,
            reference[name],
            rtol=0,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert not meta_gradient(learner, episode)["adapter.hypernetwork.net.0.weight"].count_nonzero()


def test_predictions_are_constants_of_the_meta_gradient(episode):
    """`detached: predictions` is the exact gradient with the predictions that H sees held at their
    values."""
    learner = make()
    z = learner.backbone(episode.support.x)
    predictions = learner.adapter.head(z).softmax(-1).detach()
    names = dict(learner.named_parameters())

    def objective(weights):
        body = {
            name.removeprefix("backbone."): w
            for name, w in weights.items()
            if name.startswith("backbone.")
        }
        z, query = (
            functional_call(learner.backbone, body, (x,))
            for x in (episode.support.x, episode.query.x)
        )
        rows = (
            torch.cat([z, predictions, torch.eye(3)[episode.support.y]], 1)
            .reshape(3, 2, -1)
            .mean(1)
        )
        net = {
            name.removeprefix("adapter.hypernetwork."): w
            for name, w in weights.items()
            if "hypernetwork" in name
        }
        update = functional_call(learner.adapter.hypernetwork, net, (rows,))
        head = (
            weights["adapter.head.weight"] - update.weight,
            weights["adapter.head.bias"] - update.bias,
        )
        return F.cross_entropy(F.linear(query, *head), episode.query.y)

    reference = grad(objective)(names)
    for name, gradient in meta_gradient(learner, episode).items():
        torch.testing.assert_close(
            gradient,
            reference[name],
            rtol=0,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    through = meta_gradient(make(detached="none"), episode)
    assert (through["adapter.head.weight"] - reference["adapter.head.weight"]).abs().max() > 1e-6

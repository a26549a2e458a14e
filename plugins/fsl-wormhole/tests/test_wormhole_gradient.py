"""Losses and meta-gradients against independent routes, in float64.

MAML as the limit: to 1e-12 relative, against a MAML of torch.func alone. Factors: to 1e-9 relative,
against the same rule by torch.autograd.grad on a network written out as matrix products; both
compute one real number in another order of operations.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_wormhole import Wormhole

CLASSIFICATION = fsl.TaskShape(
    "classification", n_way=3, n_shot=4, n_query=5, input_shape=(4,), output_dim=3
)
REGRESSION = fsl.TaskShape(
    "regression", n_way=1, n_shot=6, n_query=7, input_shape=(4,), output_dim=2
)
LAYERS = ("backbone.0", "backbone.2", "head")


class Net(nn.Sequential):
    feature_dim = 5

    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())


def make(task, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = Net()
        learner = fsl.Learner(
            backbone, Wormhole(task, backbone, **{"inner_lr": 0.3, "inner_steps": 3} | options)
        ).double()
        for name, parameter in learner.named_parameters():
            if "multiplier" in name:  # no two factors alike
                parameter.data += 0.1 * torch.rand_like(parameter)
    return learner


@pytest.fixture(params=[CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
def task(request):
    return request.param


@pytest.fixture
def episode(task):
    generator = torch.Generator().manual_seed(0)

    def labelled(per_class):
        x = torch.randn(
            task.n_way * per_class, *task.input_shape, generator=generator, dtype=torch.float64
        )
        if task.kind == "classification":
            return fsl.LabelledSet(x, torch.arange(task.n_way).repeat_interleave(per_class))
        return fsl.LabelledSet(x, x[:, :2] * x[:, 2:].sin())

    return fsl.Episode(labelled(task.n_shot), labelled(task.n_query), torch.tensor(0))


def meta_gradient(learner, task, episode):
    value, _ = learner.objective(episode, task.loss)
    parameters = dict(learner.named_parameters())
    return value, dict(
        zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True)
    )


def assert_same(found, expected, tolerance):
    (value, gradients), (expected_value, expected_gradients) = found, expected
    torch.testing.assert_close(value, expected_value, rtol=tolerance, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    size = torch.cat([g.flatten() for g in expected_gradients.values()]).norm()
    assert size > 1e-3
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= tolerance * size, name


def maml(learner, task, episode, order, steps=3, lr=0.3):
    """Finn et al. 2017 by torch.func: no factor anywhere."""

    def predict(fast, x):
        body = {
            name.removeprefix("backbone."): w
            for name, w in fast.items()
            if name.startswith("backbone.")
        }
        return (
            functional_call(learner.backbone, body, (x,)) @ fast["adapter.head.weight"].T
            + fast["adapter.head.bias"]
        )

    def total(fast):
        for _ in range(steps):
            gradients = grad(lambda w: task.loss(predict(w, episode.support.x), episode.support.y))(
                fast
            )
            fast = {
                name: w - lr * (gradients[name] if order == 2 else gradients[name].detach())
                for name, w in fast.items()
            }
        return task.loss(predict(fast, episode.query.x), episode.query.y)

    meta = {
        name: parameter.detach()
        for name, parameter in learner.named_parameters()
        if "multiplier" not in name
    }
    return total(meta), grad(total)(meta)


LIMITS = [(multiplies, "scalar") for multiplies in ("output", "layers", "all")] + [
    ("output", "per-output"),
    ("layers", "per-output"),
]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("multiplies", "multipliers"), LIMITS)
def test_factors_that_stay_at_one_are_maml(task, episode, multiplies, multipliers, order):
    learner = make(
        task, multiplies=multiplies, multipliers=multipliers, multiplier_lr=0.0, order=order
    )
    assert_same(meta_gradient(learner, task, episode), maml(learner, task, episode, order), 1e-12)


@pytest.mark.parametrize(("multiplies", "multipliers"), LIMITS)
def test_a_learned_rate_of_zero_is_maml(task, episode, multiplies, multipliers):
    """Here the factors are adapted, by nothing; the other weights' gradients are MAML's all the
    same."""
    learner = make(
        task,
        multiplies=multiplies,
        multipliers=multipliers,
        multiplier_lr=0.0,
        learn_multiplier_lr=True,
    )
    learner.adapter.multiplier_lr.data.zero_()
    value, gradients = meta_gradient(learner, task, episode)
    assert gradients.pop("adapter.multiplier_lr").abs() > 1e-6
    assert_same((value, gradients), maml(learner, task, episode, order=2), 1e-12)


def test_moved_factors_are_not_maml(task, episode):
    learner = make(task)
    expected, _ = maml(learner, task, episode, order=2)
    assert (learner.objective(episode, task.loss)[0] - expected).abs() > 1e-4 * expected


def written_out(learner, task, episode, steps=3, lr=0.3):
    """The rule on matrix products, by torch.autograd.grad; every factor is a tensor of its own."""
    adapter = learner.adapter
    location, rows = adapter.multipliers.location, adapter.multipliers.granularity == "per-output"
    meta = dict(learner.named_parameters())
    theta = [
        meta[f"{'adapter.' * (layer == 'head')}{layer}.{part}"]
        for layer in LAYERS
        for part in ("weight", "bias")
    ]
    sizes = {"output": [task.output_dim], "layers": [6, 5, task.output_dim], "all": [1]}[location]
    factors = [p for name, p in meta.items() if "multipliers.learned" in name]
    if not factors:
        like = {"dtype": torch.float64, "requires_grad": True}
        factors = [
            torch.full((size,) if rows else (), adapter.multipliers.initial, **like)
            for size in sizes
        ]
    factor_lr = meta.get("adapter.multiplier_lr", adapter.multiplier_lr)

    def predict(theta, factors, x):
        a = {"output": [1, 1, 1], "layers": factors, "all": factors * 3}[location]
        for layer in range(3):
            w, b = theta[2 * layer], theta[2 * layer + 1]
            x = (x @ w.T + b) * a[layer]
            x = x.tanh() if layer < 2 else x
        return x * factors[0] if location == "output" else x

    def loss(theta, factors, items):
        prediction, y = predict(theta, factors, items.x), items.y
        return (
            F.cross_entropy(prediction, y)
            if task.kind == "classification"
            else F.mse_loss(prediction, y)
        )

    for _ in range(steps):
        value = loss(theta, factors, episode.support)
        if adapter.order == 2:
            gradients = torch.autograd.grad(value, [*theta, *factors], create_graph=True)
        else:
            gradients = torch.autograd.grad(value, [*theta, *factors], retain_graph=True)
        if any(name.startswith("backbone.") for name in adapter.adapted):
            theta = [t - lr * g for t, g in zip(theta, gradients[:6], strict=True)]
        factors = [a - factor_lr * g for a, g in zip(factors, gradients[6:], strict=True)]
    value = loss(theta, factors, episode.query)
    return value, dict(zip(meta, torch.autograd.grad(value, list(meta.values())), strict=True))


OPTIONS = {
    "output": {},
    "output, own rate": {"multiplier_lr": 0.7},
    "output, each its own": {"multipliers": "per-output", "initial": -0.5},
    "output from zero": {"initial": 0.0},
    "learned output": {
        "multipliers": "per-output",
        "learn_initial": True,
        "learn_multiplier_lr": True,
    },
    "factor alone": {"adapt_weights": False, "multiplier_lr": 0.7},
    "layers": {"multiplies": "layers", "multiplier_lr": 0.1},
    "learned layers": {"multiplies": "layers", "learn_initial": True, "learn_multiplier_lr": True},
    "units": {"multiplies": "layers", "multipliers": "per-output", "learn_initial": True},
    "all": {"multiplies": "all", "multiplier_lr": 0.1},
    "all learned": {
        "multiplies": "all",
        "learn_initial": True,
        "learn_multiplier_lr": True,
        "initial": 0.7,
    },
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", OPTIONS)
def test_equals_the_rule_written_out(task, episode, case, order):
    learner = make(task, order=order, **OPTIONS[case])
    assert_same(meta_gradient(learner, task, episode), written_out(learner, task, episode), 1e-9)


def test_the_orders_differ(task, episode):
    (_, first), (_, second) = (
        meta_gradient(make(task, order=order), task, episode) for order in (1, 2)
    )
    name = "backbone.0.weight"
    assert (first[name] - second[name]).norm() > 1e-2 * second[name].norm()


def test_a_factor_crosses_zero_where_labels_are_negated():
    """A linear map whose task is its own negation: the factor alone adapts, and gets to -1 by
    descent on (a + 1)^2."""
    task = fsl.TaskShape("regression", 1, 8, 8, (4,), 2)
    learner = make(task, adapt_weights=False, multiplier_lr=0.1, test_steps=40, inner_lr=1.0).eval()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = learner.adapter.head(learner.backbone(x)).detach()
    episode = fsl.Episode(fsl.LabelledSet(x, -h), fsl.LabelledSet(x, -h), torch.tensor(0))
    rate = 2 * 0.1 * h.square().mean()  # d/da of mean (a h + h)^2 is 2 (a + 1) mean h^2
    for step, predict in enumerate(learner.trajectory(episode)):
        torch.testing.assert_close(
            predict(x), (2 * (1 - rate) ** step - 1) * h, rtol=1e-9, atol=1e-12
        )

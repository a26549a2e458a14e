"""Meta-gradients against an independent route: torch.func, or central differences where the inner
optimizer is higher's.

Tolerance 1e-9 relative in float64: both routes compute the same real number, in another order of
operations.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_maml import Maml

TASK = fsl.TaskShape(
    "classification", n_way=3, n_shot=2, n_query=3, input_shape=(1, 6, 6), output_dim=3
)


class SmallConv(fsl.NormedBackbone):
    """Two conv blocks, (n, 1, 6, 6) -> (n, 16). Softplus, because central differences need a smooth
    net."""

    feature_dim = 16

    def __init__(self, norm="transductive"):
        super().__init__(norm)
        self.convs = nn.ModuleList(
            [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)]
        )
        self.norms = nn.ModuleList([fsl.Norm(norm, 4), fsl.Norm(norm, 4)])

    def features(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.softplus(norm(conv(x)))
        return x.flatten(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def episode(generator):
    def labelled(n):
        x = torch.randn(TASK.n_way * n, *TASK.input_shape, generator=generator, dtype=torch.float64)
        return fsl.LabelledSet(x, torch.arange(TASK.n_way).repeat_interleave(n))

    return fsl.Episode(labelled(TASK.n_shot), labelled(TASK.n_query), torch.tensor(0))


def make(norm="transductive", **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = SmallConv(norm)
        learner = fsl.Learner(
            backbone, Maml(TASK, backbone, **{"inner_lr": 0.3, "inner_steps": 3} | options)
        ).double()
        for parameter in learner.parameters():  # no two rates alike, no shift at zero
            parameter.data += 0.05 * torch.rand_like(parameter)
    return learner


def meta_gradient(learner, episode):
    value, _ = learner.objective(episode, TASK.loss)
    parameters = dict(learner.named_parameters())
    return value, dict(
        zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True)
    )


def reference(
    learner,
    episode,
    steps,
    adapts=lambda name, step: True,
    rate=None,
    order=2,
    momentum=0.0,
    clip=None,
    shares=None,
    norms=lambda meta, step: {},
):
    """The meta-gradient by torch.func alone. rate(meta, name, step) and adapts(name, step) say what
    a step does to a tensor.

    norms(meta, step): weights that take the place of others from this step on.
    """
    rate = rate or (lambda meta, name, step: 0.3)
    shares = shares or [0.0] * (steps - 1) + [1.0]

    def predict(fast, x):
        body = {
            name.removeprefix("backbone."): w
            for name, w in fast.items()
            if name.startswith("backbone.")
        }
        return (
            functional_call(learner.backbone, body, (x,)) @ fast["head.weight"].T
            + fast["head.bias"]
        )

    def support_loss(fast):
        return F.cross_entropy(predict(fast, episode.support.x), episode.support.y)

    def total(meta):
        fast = {
            name.removeprefix("adapter."): w
            for name, w in meta.items()
            if "inner_lr" not in name and "step_norms" not in name
        }
        velocity, value = {}, 0.0
        for step in range(steps):
            fast = fast | norms(meta, step)
            chosen = {name for name in fast if adapts(name, step)}
            gradients = {name: g for name, g in grad(support_loss)(fast).items() if name in chosen}
            if order == 1:
                gradients = {name: g.detach() for name, g in gradients.items()}
            if clip is not None:
                norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
                gradients = {
                    name: g * torch.minimum(clip / norm, torch.ones_like(norm))
                    for name, g in gradients.items()
                }
            for name, g in gradients.items():
                velocity[name] = g + momentum * velocity[name] if name in velocity else g
                fast = fast | {name: fast[name] - rate(meta, name, step) * velocity[name]}
            value = value + shares[step] * F.cross_entropy(
                predict(fast, episode.query.x), episode.query.y
            )
        return value

    meta = {name: parameter.detach() for name, parameter in learner.named_parameters()}
    return total(meta), grad(total)(meta)


def assert_same(found, expected):
    (value, gradients), (expected_value, expected_gradients) = found, expected
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    size = torch.cat([g.flatten() for g in expected_gradients.values()]).norm()
    assert size > 1e-3
    for name, expected_gradient in expected_gradients.items():
        assert (gradients[name] - expected_gradient).norm() <= 1e-9 * size, name


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", ["transductive", "running", "group", "none"])
def test_equals_torch_func(episode, norm, steps, order):
    learner = make(norm, inner_steps=steps, order=order)
    assert_same(meta_gradient(learner, episode), reference(learner, episode, steps, order=order))


def test_the_orders_differ(episode):
    (_, first), (_, second) = (meta_gradient(make(order=order), episode) for order in (1, 2))
    name = "backbone.convs.0.weight"
    assert (first[name] - second[name]).norm() > 1e-2 * second[name].norm()


SELECTIONS = {
    "head": ("head", lambda name, step: name.startswith("head.")),
    "body": ("body", lambda name, step: name.startswith("backbone.")),
    "one pattern": ("*.bias", lambda name, step: name.endswith(".bias")),
    "patterns": (
        ["backbone.convs.1.*", "head.weight"],
        lambda name, step: ".convs.1." in name or name == "head.weight",
    ),
    "head first": ([["head"], ["all"]], lambda name, step: step > 0 or name.startswith("head.")),
    "head last": ([["all"], ["head"]], lambda name, step: step == 0 or name.startswith("head.")),
    "in turn": (
        [["body"], ["head"], ["backbone.norms.*"]],
        lambda name, step: name.startswith(("backbone.", "head.", "backbone.n")[step]),
    ),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selected_parameters(episode, selection, order):
    adapted, adapts = SELECTIONS[selection]
    learner = make(adapted=adapted, order=order)
    assert_same(
        meta_gradient(learner, episode), reference(learner, episode, 3, adapts, order=order)
    )


NORMS = [f"backbone.norms.{i}.{name}" for i in (0, 1) for name in ("scale", "shift")]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("engine", ["functional", "higher"])
def test_norms_that_are_not_adapted(episode, engine, order):
    """`adapt_norms: false` is every weight but scales and shifts, as patterns can say it too."""
    learner = make(adapt_norms=False, order=order, engine=engine)
    expected = reference(learner, episode, 3, lambda name, step: name not in NORMS, order=order)
    assert_same(meta_gradient(learner, episode), expected)
    spelled_out = make(adapted=["head.*", "backbone.convs.*"], order=order, engine=engine)
    assert_same(meta_gradient(spelled_out, episode), expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("adapted", ["all", "head"])
def test_norms_of_each_step(episode, adapted, order):
    """Step k and the queries after it see the scales and shifts of row k; the backbone's own get no
    gradient."""
    options = {"adapt_norms": False, "norms_per_step": True, "multi_step_loss": 1.0}
    learner = make(adapted=adapted, order=order, **options)
    learner.on_progress(0.0)  # made in float32, in which a third is another number

    def norms(meta, step):
        return {name: meta[f"adapter.step_norms.values.{i}"][step] for i, name in enumerate(NORMS)}

    def adapts(name, step):
        return name not in NORMS and (adapted == "all" or name.startswith("head."))

    expected = reference(learner, episode, 3, adapts, order=order, norms=norms, shares=[1 / 3] * 3)
    value, _ = learner.objective(episode, TASK.loss)
    parameters = dict(learner.named_parameters())
    gradients = torch.autograd.grad(
        value, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    found = dict(zip(parameters, gradients, strict=True))
    assert_same((value, found), expected)
    assert all(not found[name].any() for name in NORMS)
    rows = [found[f"adapter.step_norms.values.{i}"] for i in range(4)]
    assert all(row.any() for of_layer in rows for row in of_layer)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "kind", ["scalar", "per-parameter", "per-parameter-and-step", "elementwise"]
)
def test_learned_rates(episode, kind, order):
    learner = make(learn_inner_lr=kind, order=order)
    position = {name: i for i, name in enumerate(learner.adapter.fast_names)}

    def rate(meta, name, step):
        if kind == "elementwise":
            return meta[f"adapter.inner_lr.rates.{position[name]}"]
        rates = meta["adapter.inner_lr.rate"]
        return {"scalar": lambda: rates, "per-parameter": lambda: rates[position[name]]}.get(
            kind, lambda: rates[step, position[name]]
        )()

    found = meta_gradient(learner, episode)
    assert_same(found, reference(learner, episode, 3, rate=rate, order=order))
    assert all(g.abs().max() > 0 for name, g in found[1].items() if "inner_lr" in name)


def test_momentum(episode):
    learner = make(inner_optimizer_options={"momentum": 0.9})
    assert_same(meta_gradient(learner, episode), reference(learner, episode, 3, momentum=0.9))


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipped(episode, limit):
    learner = make(clip_inner_grad=limit)
    assert_same(meta_gradient(learner, episode), reference(learner, episode, 3, clip=limit))


def test_clipping_a_zero_gradient_keeps_gradients_finite(episode):
    learner = make(clip_inner_grad=0.5, adapted="head")
    constant = episode._replace(
        support=fsl.LabelledSet(torch.zeros_like(episode.support.x), episode.support.y)
    )
    nn.init.zeros_(learner.adapter.head.weight)
    nn.init.zeros_(learner.adapter.head.bias)
    with torch.no_grad():
        for norm in learner.backbone.norms:
            norm.shift.fill_(
                -100.0
            )  # softplus of it is zero, labels are balanced: so is the head's gradient
    _, gradients = meta_gradient(learner, constant)
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    ("progress", "shares"),
    [
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (0.25, [1 / 6, 1 / 6, 2 / 3]),
        (0.499, [0.01, 0.01, 0.98]),
        (0.5, [0.0, 0.0, 1.0]),
    ],
)
def test_multi_step_loss(episode, progress, shares):
    learner = make(multi_step_loss=0.5)
    learner.adapter.on_progress(progress)
    assert_same(meta_gradient(learner, episode), reference(learner, episode, 3, shares=shares))


def test_multi_step_loss_is_for_training_only(episode):
    learner = make(multi_step_loss=1.0).eval()
    torch.testing.assert_close(
        learner.objective(episode, TASK.loss)[0], make().eval().objective(episode, TASK.loss)[0]
    )


def central_difference(learner, episode, direction, step=1e-6):
    def value(sign):
        moved = copy.deepcopy(learner)
        with torch.no_grad():
            for parameter, d in zip(moved.parameters(), direction, strict=True):
                parameter.add_(d, alpha=sign * step)
        return moved.objective(episode, TASK.loss)[0].detach()

    return (value(1) - value(-1)) / (2 * step)


DIFFERENTIATED = {
    "adam": {
        "inner_optimizer": "adam",
        "inner_lr": 0.05,
        "inner_optimizer_options": {"betas": [0.8, 0.9], "eps": 1e-3},
    },
    "adam, elementwise": {
        "inner_optimizer": "adam",
        "inner_lr": 0.05,
        "learn_inner_lr": "elementwise",
    },
    "adam, per step": {
        "inner_optimizer": "adam",
        "inner_lr": 0.05,
        "learn_inner_lr": "per-parameter-and-step",
    },
    "adamax": {"inner_optimizer": "adamax", "inner_lr": 0.05, "learn_inner_lr": "per-parameter"},
    "adagrad": {"inner_optimizer": "adagrad", "inner_lr": 0.05, "learn_inner_lr": "elementwise"},
    "adadelta": {"inner_optimizer": "adadelta", "inner_lr": 1.0, "learn_inner_lr": "scalar"},
    "rmsprop": {"inner_optimizer": "rmsprop", "inner_lr": 0.01, "learn_inner_lr": "elementwise"},
    "rprop": {"inner_optimizer": "rprop", "inner_lr": 0.01},
    "asgd": {"inner_optimizer": "asgd"},
    "sgd, weight decay": {
        "inner_optimizer_options": {"weight_decay": 0.1, "momentum": 0.5, "nesterov": True}
    },
    "norm by the support set": {"norm": "support"},
    "ANIL, norm by the support set": {"norm": "support", "adapted": "head"},
}


@pytest.mark.parametrize("case", DIFFERENTIATED)
def test_equals_central_differences(episode, generator, case):
    """Relative error of a central difference: about step² + 1e-16 / step, amplified by adaptive
    optimizers; 1e-5 has room."""
    learner = make(**DIFFERENTIATED[case])
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in learner.parameters()
    ]
    _, gradients = meta_gradient(learner, episode)
    slope = sum((g * d).sum() for g, d in zip(gradients.values(), direction, strict=True))
    torch.testing.assert_close(
        slope, central_difference(learner, episode, direction), rtol=1e-5, atol=1e-8
    )


TORCH = {
    name.lower(): getattr(torch.optim, name)
    for name in ["SGD", "Adam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD"]
}


@pytest.mark.parametrize("name", TORCH)
def test_steps_are_those_of_torch_optim(episode, name):
    """Adam with a vanishing eps: higher adds eps before the bias correction (eps-hat of the paper),
    torch after it."""
    options = {"adam": {"eps": 1e-30}, "adagrad": {"initial_accumulator_value": 0.1}}.get(name, {})
    learner = make(
        inner_optimizer=name, inner_lr=0.05, inner_steps=4, inner_optimizer_options=options
    ).eval()
    other = copy.deepcopy(learner)
    body, head = other.backbone, other.adapter.head
    optimizer = TORCH[name]([*body.parameters(), *head.parameters()], lr=0.05, **options)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(head(body(episode.support.x)), episode.support.y).backward()
        optimizer.step()
    found = learner(episode.support, episode.query.x)
    rtol = 1e-7 if name == "asgd" else 1e-11  # torch keeps the rate of ASGD in float32
    torch.testing.assert_close(found, head(body(episode.query.x)), rtol=rtol, atol=0)


def test_a_constant_elementwise_rate_is_maml(episode):
    plain, meta_sgd = make(), make(learn_inner_lr="elementwise")
    meta_sgd.load_state_dict(plain.state_dict(), strict=False)
    for rates in meta_sgd.adapter.inner_lr.rates:
        rates.data.fill_(0.3)
    value, gradients = meta_gradient(meta_sgd, episode)
    gradients = {name: g for name, g in gradients.items() if "inner_lr" not in name}
    assert_same((value, gradients), meta_gradient(plain, episode))


def test_anil_is_maml_with_a_body_rate_of_zero(episode):
    anil, maml = make(adapted="head"), make(learn_inner_lr="per-parameter")
    maml.load_state_dict(anil.state_dict(), strict=False)
    rates = [0.3 * name.startswith("head.") for name in maml.adapter.fast_names]
    maml.adapter.inner_lr.rate.data = torch.tensor(rates, dtype=torch.float64)
    value, gradients = meta_gradient(maml, episode)
    gradients.pop("adapter.inner_lr.rate")
    assert_same((value, gradients), meta_gradient(anil, episode))


def test_float32_is_close_to_float64(episode):
    single = make().float()
    as_single = fsl.Episode(*(s._replace(x=s.x.float()) for s in episode[:2]), episode.id)
    value, _ = single.objective(as_single, TASK.loss)
    torch.testing.assert_close(
        value.double(), make().objective(episode, TASK.loss)[0], rtol=1e-5, atol=0
    )

"""What the options mean, what is refused, and what adaptation leaves alone."""

import copy
import gc

import pytest
import torch
from torch import nn

import fsl_core as fsl
import fsl_maml
from fsl_maml import Maml

TASK = fsl.TaskShape(
    "classification", n_way=3, n_shot=2, n_query=3, input_shape=(1, 4, 4), output_dim=3
)
REGRESSION = fsl.TaskShape(
    "regression", n_way=1, n_shot=5, n_query=7, input_shape=(1,), output_dim=1
)


class SmallNet(nn.Sequential):
    """Conv and BatchNorm with running statistics, which a careless inner loop would move; (n, 1, 4,
    4) -> (n, 8)."""

    feature_dim = 8

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()
        )


class SmallMlp(nn.Sequential):
    feature_dim = 6

    def __init__(self):
        super().__init__(nn.Linear(1, 6), nn.Tanh())


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def support(generator):
    return fsl.LabelledSet(
        torch.randn(6, *TASK.input_shape, generator=generator), torch.arange(3).repeat_interleave(2)
    )


@pytest.fixture
def query(generator):
    return fsl.LabelledSet(
        torch.randn(9, *TASK.input_shape, generator=generator), torch.arange(3).repeat_interleave(3)
    )


def weights_of(learner):
    return fsl.Functional(learner.backbone, learner.adapter.head).weights


def make(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = SmallNet()
        return fsl.Learner(backbone, Maml(TASK, backbone, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.0}, r"inner_lr: 0.0\. A number above 0"),
        ({"inner_steps": -1}, r"maml: inner_steps: -1\. A number from 0"),
        ({"test_steps": -2}, r"maml: test_steps: -2\. A number from 0, or None"),
        ({"order": 3}, r"order: 3\. 1 or 2"),
        ({"clip_inner_grad": 0.0}, r"clip_inner_grad: 0.0\. A number above 0, or None"),
        ({"multi_step_loss": 1.5}, r"multi_step_loss: 1.5\. A number of at most 1, or None"),
        (
            {"learn_inner_lr": "per-layer"},
            r"learn_inner_lr: 'per-layer'\. 'fixed', 'scalar', 'per-parameter', .*'elementwise'",
        ),
        (
            {"inner_optimizer": "adamw"},
            r"maml: inner_optimizer: 'adamw'\. 'sgd', 'adam', .*'asgd'",
        ),
        (
            {"inner_optimizer": "rprop", "learn_inner_lr": "scalar"},
            r"learn_inner_lr: higher passes no gradient to the rate of 'rprop'\. 'fixed', or "
            r"another optimizer",
        ),
        (
            {"inner_optimizer_options": {"betas": [0.9, 0.99], "momentun": 0.9}},
            r"inner_optimizer_options: 'sgd' has no betas, momentun\. Known: dampening, momentum, "
            r"nesterov, weight_decay",
        ),
        ({"inner_optimizer_options": {"maximize": True}}, r"'sgd' has no maximize\. Known: "),
        (
            {"inner_optimizer_options": {"momentum": -1}},
            r"inner_optimizer_options: Invalid momentum value: -1\. Values that torch\.optim\.SGD "
            r"takes",
        ),
        (
            {"adapted": ["head.*", "layer4.*"]},
            r"adapted: 'layer4\.\*' matches no parameter\. all, head, body, or patterns over "
            r"backbone\.0\.weight, .*head\.bias",
        ),
        (
            {"norms_per_step": True},
            r"norms_per_step: true with adapt_norms: true, which would move what belongs to one "
            r"step\. adapt_norms: false",
        ),
        (
            {"adapted": []},
            r"adapted: an empty list\. all, head, body, or patterns over backbone\.0\.weight",
        ),
        ({"adapted": [["all"], []]}, r"adapted: an empty list\."),
        (
            {"adapted": [["all"], ["head"], ["head"]], "inner_steps": 2},
            r"adapted: lists for 3 steps\. At most 2, as many as there are inner steps",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_is_registered():
    found = []
    fsl_maml.fsl_register_adapters(found.append)
    assert found == [Maml]
    assert Maml.name == "maml"
    assert Maml.vectorizable
    assert not make(engine="higher").adapter.vectorizable


@pytest.mark.parametrize("order", [1, 2])
def test_order_is_what_it_claims(order):
    assert make(order=order).adapter.order == order


@pytest.mark.parametrize(
    "kind", ["scalar", "per-parameter", "per-parameter-and-step", "elementwise"]
)
def test_learned_rates_start_at_inner_lr(kind):
    adapter = make(learn_inner_lr=kind, inner_lr=0.25, inner_steps=2, adapted="head").adapter
    shapes = {
        "scalar": [()],
        "per-parameter": [(2,)],
        "per-parameter-and-step": [(2, 2)],
        "elementwise": [(3, 8), (3,)],
    }
    rates = list(adapter.inner_lr.parameters())
    assert [tuple(rate.shape) for rate in rates] == shapes[kind]
    assert all((rate == 0.25).all() for rate in rates)


def test_fixed_rate_is_no_parameter():
    assert set(make().adapter.state_dict()) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inner_optimizer", ["sgd", "adam", "rmsprop", "rprop"])
def test_adapting_changes_nothing(support, query, training, inner_optimizer):
    learner = make(learn_inner_lr="fixed", inner_optimizer=inner_optimizer).train(training)
    learner.backbone[0].bias.requires_grad_(False)
    before = copy.deepcopy(learner.state_dict())
    for _ in range(2):
        learner(support, query.x)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert [name for name, p in learner.named_parameters() if not p.requires_grad] == [
        "backbone.0.bias"
    ]
    assert all(module.training == training for module in learner.modules())


@pytest.mark.parametrize("learn_inner_lr", ["fixed", "elementwise"])
def test_episodes_do_not_depend_on_earlier_ones(support, query, learn_inner_lr):
    learner = make(inner_optimizer="adam", learn_inner_lr=learn_inner_lr)
    first = learner(support, query.x)
    learner(query, support.x)
    assert torch.equal(learner(support, query.x), first)


def frozen_in_part(**options):
    """A learner whose first layer requires no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = SmallNet()
        backbone[0].requires_grad_(False)
        backbone[1] = nn.BatchNorm2d(2, track_running_stats=False)  # which both engines take
        return fsl.Learner(backbone, Maml(TASK, backbone, **options))


@pytest.mark.parametrize("engine", ["functional", "higher"])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_layers_are_not_fast_weights(support, query, engine, training):
    learner = frozen_in_part(engine=engine, learn_inner_lr="per-parameter").train(training)
    fast, left = learner.adapter.fast_names, [f"backbone.0.{n}" for n in ("weight", "bias")]
    assert set(fast) == set(weights_of(learner)) - set(left)
    assert len(learner.adapter.inner_lr.rate) == len(fast)
    seen = []
    learner.backbone[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    own = learner.backbone[0].weight
    predict = learner.adapt(fsl.Episode(support, query, torch.tensor(0)))
    seen.clear()
    predict(query.x)
    assert torch.equal(seen[0], own)


def test_frozen_layers_are_adapted_where_an_option_says_so(support, query):
    kept = frozen_in_part()(support, query.x)
    moved = frozen_in_part(adapt_frozen=True)
    assert moved.adapter.fast_names == list(weights_of(moved))
    assert not torch.equal(moved(support, query.x), kept)


def test_patterns_of_frozen_layers_alone_are_refused():
    message = (
        r"adapted: 'backbone\.0\.\*' matches frozen parameters alone, backbone\.0\.weight, "
        r"backbone\.0\.bias\. adapt_frozen: true, or patterns of others$"
    )
    with pytest.raises(ValueError, match=message):
        frozen_in_part(adapted="backbone.0.*")


def test_a_frozen_backbone_is_adapted_alike_in_training_and_evaluation(support, query):
    learner = make(adapt_frozen=True)
    learner.backbone.requires_grad_(False).eval()
    in_training = learner(support, query.x)
    learner.adapter.eval()
    torch.testing.assert_close(learner(support, query.x), in_training)
    learner.adapter.train()
    learner(support, query.x).sum().backward()
    assert learner.adapter.head.weight.grad is not None


@pytest.mark.parametrize("adapted", ["all", "head"])
def test_evaluation_works_without_grad_and_keeps_no_graph(support, query, adapted):
    learner = make(adapted=adapted, learn_inner_lr="scalar").eval()
    predictions = learner(support, query.x)
    with torch.no_grad():
        without = learner(support, query.x)
    assert torch.equal(predictions, without)
    assert predictions.grad_fn is None
    assert not predictions.requires_grad
    assert not torch.equal(
        predictions, make(adapted=adapted, inner_steps=0).eval()(support, query.x)
    )


def test_training_mode_under_no_grad_keeps_no_graph(support, query):
    with torch.no_grad():
        assert not make()(support, query.x).requires_grad


def test_evaluations_leave_no_tensors_behind(support, query):
    def tensors():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    learner = make(inner_optimizer="adam").eval()
    learner(support, query.x)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(5):
            learner(support, query.x)
        assert tensors() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("adapted", ["all", "head", [["head"], ["all"]]])
def test_trajectory_ends_in_what_adapt_returns(support, query, training, adapted):
    learner = make(inner_steps=2, test_steps=3, adapted=adapted).train(training)
    episode = fsl.Episode(support, query, torch.tensor(0))
    path = [predict(query.x) for predict in learner.trajectory(episode)]
    assert len(path) == (3 if training else 4)
    assert torch.equal(path[0], make(inner_steps=0).train(training)(support, query.x))
    assert torch.equal(
        path[1],
        make(inner_steps=1, adapted="all" if adapted == "all" else "head").train(training)(
            support, query.x
        ),
    )
    assert torch.equal(path[-1], learner(support, query.x))
    assert all(logits.requires_grad == training for logits in path)


def test_test_steps_may_exceed_the_listed_ones(support, query):
    learner = make(
        inner_steps=2,
        test_steps=4,
        learn_inner_lr="per-parameter-and-step",
        adapted=[["all"], ["head"]],
    )
    learner.adapter.inner_lr.rate.data[0].fill_(0.2)
    last = make(inner_steps=1, test_steps=3, adapted="head")
    first = make(inner_steps=1, inner_lr=0.2)
    assert len(learner.eval().trajectory(fsl.Episode(support, query, torch.tensor(0)))) == 5
    learner.adapter.inner_lr.rate.data[1].fill_(
        1e-30
    )  # steps 2, 3 and 4 do nothing if they use the last row
    torch.testing.assert_close(learner(support, query.x), first.eval()(support, query.x))
    assert not torch.equal(last.eval()(support, query.x), learner(support, query.x))


def test_zero_steps(support, query):
    learner = make(inner_steps=0, multi_step_loss=0.5, learn_inner_lr="per-parameter-and-step")
    value, prediction = learner.objective(fsl.Episode(support, query, torch.tensor(0)), TASK.loss)
    assert prediction.shape == (9, 3)
    value.backward()
    assert learner.adapter.head.weight.grad is not None


@pytest.mark.parametrize("adapted", ["all", "head", "body"])
def test_steps_lower_the_support_loss(support, adapted):
    learner = make(inner_steps=10, inner_lr=0.1, adapted=adapted)
    path = learner.trajectory(fsl.Episode(support, support, torch.tensor(0)))
    losses = [TASK.loss(predict(support.x), support.y).item() for predict in path]
    assert losses == sorted(losses, reverse=True)


def test_regression(generator):
    backbone = SmallMlp()
    learner = fsl.Learner(backbone, Maml(REGRESSION, backbone, inner_lr=0.05))
    support, query = (
        fsl.LabelledSet(x, x.sin()) for x in torch.randn(2, 5, 1, generator=generator)
    )
    value, prediction = learner.objective(
        fsl.Episode(support, query, torch.tensor(0)), REGRESSION.loss
    )
    assert prediction.shape == (5, 1)
    value.backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_support_set_itself_reaches_the_backbone(support, query):
    """Norm policy `support` recognises the support set by identity."""
    seen = []
    learner = make(inner_steps=2)
    learner.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    learner(support, query.x)
    assert [x is support.x for x in seen] == [True, True, False]
    seen.clear()
    anil = make(inner_steps=4, adapted="head")
    anil.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    anil(support, query.x)
    assert [x is support.x for x in seen] == [True, False]


def test_survives_copies_and_state_dicts(support, query):
    learner = make(learn_inner_lr="elementwise", inner_optimizer="adam")
    expected = learner(support, query.x)
    assert torch.equal(copy.deepcopy(learner)(support, query.x), expected)
    other = make(learn_inner_lr="elementwise", inner_optimizer="adam", inner_lr=0.7)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other(support, query.x), expected)


def test_norms_are_found_in_any_backbone():
    """SmallNet has a torch BatchNorm2d as its second layer."""
    of_net = ["backbone.0.weight", "backbone.0.bias", "head.weight", "head.bias"]
    assert make(adapt_norms=False).adapter.fast_names == of_net
    with pytest.raises(ValueError, match=r"adapted: 'backbone\.1\.\*' matches no parameter"):
        make(adapted="backbone.1.*", adapt_norms=False)
    assert make(adapted="backbone.1.*").adapter.fast_names == [
        "backbone.1.weight",
        "backbone.1.bias",
    ]


@pytest.mark.parametrize("training", [True, False])
def test_equal_norms_of_all_steps_are_one_norm(support, query, training):
    """Fresh ones are copies of the backbone's, and evaluation steps beyond those of training use
    the last."""
    options = {"adapt_norms": False, "inner_steps": 2, "test_steps": 4}
    shared = make(**options).train(training)
    per_step = make(**options, norms_per_step=True).train(training)
    assert [tuple(values.shape) for values in per_step.adapter.step_norms.values] == [(2, 2)] * 2
    expected = shared(support, query.x)
    torch.testing.assert_close(per_step(support, query.x), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        per_step.adapter.step_norms.values[0][0] *= 2
    before_last = per_step(support, query.x)
    assert not torch.allclose(before_last, expected)
    with torch.no_grad():
        per_step.adapter.step_norms.values[0][1] *= 2
    assert not torch.allclose(per_step(support, query.x), before_last)


def test_the_head_of_mamls_code_starts_normal():
    """Half of 64 * 5 standard normal numbers lie within 0.674 of zero, and the bias is zero."""
    torch.manual_seed(0)
    task = fsl.TaskShape("classification", 5, 1, 1, (64,), 5)
    backbone = nn.Identity()
    backbone.feature_dim = 64
    head = Maml(task, backbone, head_init="normal").head
    assert head.weight.std().item() == pytest.approx(1, rel=0.1)
    assert (head.weight.abs() < 0.674).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not head.bias.any()
    torch.manual_seed(0)
    default = Maml(task, backbone).head
    torch.manual_seed(0)
    assert torch.equal(default.weight, nn.Linear(64, 5).weight)

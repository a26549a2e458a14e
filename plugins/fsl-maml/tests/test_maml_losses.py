"""Penalties of the inner loss, the aggregated step of BDA, a zero head: against steps by hand."""

import pytest
import torch
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_maml import Maml

TASK = tiny_task()


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def make(**options):
    torch.manual_seed(0)
    backbone = TinyBackbone()
    options = {"inner_steps": 3, "inner_lr": 0.2} | options
    return fsl.Learner(backbone, Maml(TASK, backbone, **options))


def episode():
    return tiny_episodes(TASK, 1).unbatch()[0]


def meta_gradient(learner):
    value, _ = learner.objective(episode(), TASK.loss)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([part.flatten() for part in found])


def by_hand(learner, loss, steps=3, rate=0.2, after=None):
    """Value and meta-gradient of steps on loss(logits of, fast, start, k), by torch.autograd."""
    names = [
        n for n, p in learner.named_parameters() if n.partition(".")[0] in ("backbone", "adapter")
    ]
    named = dict(learner.named_parameters())
    start = {
        name.removeprefix("adapter."): named[name] for name in names if "aggregate" not in name
    }
    fast = dict(start)

    def logits(fast, x):
        return fsl.Functional(learner.backbone, learner.adapter.head)(fast, x)

    for k in range(steps):
        value = loss(lambda x, fast=fast: logits(fast, x), fast, start, k)
        slopes = torch.autograd.grad(value, list(fast.values()), create_graph=True)
        fast = {n: w - rate * g for (n, w), g in zip(fast.items(), slopes, strict=True)}
    if after is not None:
        fast = after(fast, start)
    value = F.cross_entropy(logits(fast, episode().query.x), episode().query.y)
    trained = [p for p in learner.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([part.flatten() for part in found])


def support(logits):
    return F.cross_entropy(logits(episode().support.x), episode().support.y)


def query(logits):
    return F.cross_entropy(logits(episode().query.x), episode().query.y)


def squares(tensors):
    return sum(tensor.square().sum() for tensor in tensors)


def apart(fast, start):
    return squares(fast[name] - start[name] for name in fast)


CASES = {
    "sum over shots": ({"inner_loss": "sum-per-shot"}, lambda f, fast, start, k: 3 * support(f)),
    "weight decay": (
        {"weight_decay": 0.4},
        lambda f, fast, start, k: (
            support(f) + 0.2 * squares(w for n, w in fast.items() if n.startswith("head."))
        ),
    ),
    "proximal": (
        {"proximal": 0.6},
        lambda f, fast, start, k: support(f) + 0.3 * apart(fast, start),
    ),
    "aggregate": (
        {"aggregate": 0.5},
        lambda f, fast, start, k: (1 - 0.5 / (k + 1)) * support(f) + 0.5 / (k + 1) * query(f),
    ),
}


@pytest.mark.parametrize("engine", ["functional", "higher"])
@pytest.mark.parametrize("name", CASES)
def test_losses_by_hand(name, engine):
    options, loss = CASES[name]
    learner = make(engine=engine, **options)
    for found, expected in zip(meta_gradient(learner), by_hand(learner, loss), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_learned_share():
    learner = make(aggregate=0.3, learn_aggregate=True)
    logit = learner.adapter.aggregate.logit
    torch.testing.assert_close(logit.sigmoid().detach(), torch.tensor(0.3), rtol=1e-6, atol=0)

    def loss(f, fast, start, k):
        share = logit.sigmoid() / (k + 1)
        return (1 - share) * support(f) + share * query(f)

    found, expected = meta_gradient(learner), by_hand(learner, loss)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    place = fsl.gradient_columns(learner)["adapter.aggregate.logit"]
    assert found[1][place].abs() > 1e-6


def test_one_proximal_step_at_the_end():
    """As in iMAML's code: steps on the support loss, then one on the penalty."""
    learner = make(proximal=0.6, proximal_steps="last")

    def after(fast, start):
        return {name: w - 0.2 * 0.6 * (w - start[name]) for name, w in fast.items()}

    expected = by_hand(learner, lambda f, fast, start, k: support(f), after=after)
    torch.testing.assert_close(meta_gradient(learner), expected, rtol=1e-10, atol=1e-12)


DEFAULTS = {
    "aggregate": 0.0,
    "weight_decay": 0.0,
    "proximal": 0.0,
    "head_start": "learned",
    "inner_loss": "mean",
}


@pytest.mark.parametrize("engine", ["functional", "higher"])
def test_no_share_is_the_plain_loop_bit_for_bit(engine):
    plain = meta_gradient(make(engine=engine))
    found = meta_gradient(make(engine=engine, **DEFAULTS))
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])


def test_evaluation_sees_no_query_label():
    aggregated, plain = make(aggregate=0.9).eval(), make().eval()
    for found, expected in zip(
        aggregated.trajectory(episode()), plain.trajectory(episode()), strict=True
    ):
        assert torch.equal(found(episode().query.x), expected(episode().query.x))
    problem = aggregated.adapter.inner_problem(
        aggregated.backbone, episode().support, episode().query
    )
    assert all("share" not in name for name in problem.outer)


def test_the_penalty_of_evaluation():
    with_penalty, without = make(proximal=2.0).eval(), make(proximal=2.0, test_proximal=0.0).eval()
    plain = make().eval()
    x = episode().query.x
    assert torch.equal(without.adapt(episode())(x), plain.adapt(episode())(x))
    assert not torch.equal(with_penalty.adapt(episode())(x), plain.adapt(episode())(x))


def test_a_head_that_starts_at_zero_is_not_trained():
    learner = make(head_start="zero", adapted="head", weight_decay=0.1)
    assert not any(p.requires_grad for p in learner.adapter.parameters())
    assert torch.equal(learner.trajectory(episode())[0](episode().query.x), torch.zeros(9, 3))
    _, slopes = meta_gradient(learner)
    assert slopes.norm() > 1e-4
    problem = learner.adapter.inner_problem(learner.backbone, episode().support)
    assert problem.curvature == 0.1
    assert set(problem.start) == {"head.weight", "head.bias"}


def test_curvature_is_that_of_the_penalties():
    def curvature(**options):
        learner = make(**options)
        return learner.adapter.inner_problem(learner.backbone, *episode()[:2]).curvature

    assert curvature() == curvature(weight_decay=0.5) == 0
    assert curvature(proximal=0.7) == 0.7
    assert curvature(adapted="head", weight_decay=0.5, proximal=0.7) == 1.2
    assert curvature(adapted="head", weight_decay=0.5, aggregate=0.5) == 0


class Items(torch.nn.Module):
    """The items themselves as features, (n, 2)."""

    feature_dim = 2

    def forward(self, x):
        return x


def test_the_aggregated_step_finds_the_best_of_many_minimisers():
    """Least squares where the support set says nothing of the second weight, and the queries do.

    Plain steps keep what the start has there.
    """
    task = fsl.TaskShape("regression", 1, 2, 4, input_shape=(2,), output_dim=1)
    support = fsl.LabelledSet(torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([[1.0], [-1]]))
    x = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    drawn = fsl.Episode(
        support, fsl.LabelledSet(x, x @ torch.tensor([[0.2], [3]])), torch.tensor(0)
    )

    def reached(**options):
        torch.manual_seed(0)
        adapter = Maml(task, Items(), 0.5, inner_steps=150, adapted="head.weight", **options)
        adapter.head.bias.data.zero_()
        problem = fsl.inner_problem_of(adapter, Items(), drawn)
        *_, last = problem.points(tracked=False)
        return last.phi["head.weight"].flatten(), adapter.head.weight[0, 1].detach()

    plain, start = reached()
    torch.testing.assert_close(plain, torch.stack([torch.tensor(1.0), start]))
    mixed, _ = reached(aggregate=0.5)
    torch.testing.assert_close(mixed, torch.tensor([1.0, 3.0]), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learn_aggregate": True},
            r"learn_aggregate: true with aggregate: None, whose logit is not finite\. aggregate: a",
        ),
        (
            {"aggregate": 1.0, "learn_aggregate": True},
            r"learn_aggregate: true with aggregate: 1\.0",
        ),
        ({"aggregate": 0.5, "proximal": 1.0}, r"aggregate: 0\.5 with proximal\. One of the two"),
        (
            {"aggregate": 0.5, "multi_step_loss": 0.5},
            r"aggregate: 0\.5 with multi_step_loss\. One of the two",
        ),
        (
            {"head_start": "zero", "adapted": "body"},
            r"head_start: zero with an `adapted` that leaves out head\.weight, which would stay "
            r"zero\. adapted: head or all",
        ),
        ({"aggregate": 1.5}, r"maml: aggregate: 1\.5\. A number of at most 1, or None"),
    ],
    ids=str,
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

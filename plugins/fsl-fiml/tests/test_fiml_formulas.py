"""Start, objective and steps against independent routes, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import fsl_core as fsl
from fsl_core.testing import double_precision, tiny_episodes, tiny_task
from fsl_core.testing.tiny import TinyBackbone, unequal_episodes
from fsl_fiml import Fiml
from fsl_fiml.objective import Objective, step
from fsl_fiml.start import closed_form

PLAIN = {
    "own_target": 5.0,
    "other_target": -5.0,
    "own_weight": 1.0,
    "other_weight": 1.0,
    "own_slope": 1.0,
    "other_slope": 1.0,
    "regularisation": 0.0,
    "entropy_weight": 3.0,
    "temperature": 0.7,
}
UNEVEN = PLAIN | {
    "own_target": 4.0,
    "other_target": -3.0,
    "own_weight": 1.5,
    "other_weight": 0.6,
    "own_slope": 0.2,
    "other_slope": 0.5,
    "regularisation": 0.4,
}


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def items(seed: int = 0, n_way: int = 5, n_shot: int = 5, d: int = 32) -> tuple[Tensor, Tensor]:
    """Features around class means, all positive as after a ReLU, and members."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_way, 1, d, generator=generator)
    noise = torch.randn(n_way, n_shot, d, generator=generator)
    y = torch.arange(n_way).repeat_interleave(n_shot)
    return (means + noise).flatten(0, 1).relu(), one_hot(y, n_way).double()


def setting(
    numbers: dict[str, float] = PLAIN, queries: int = 0, curvature: str = "covariance", **sizes: int
) -> tuple[Tensor, Objective]:
    """The start, and the objective on features of length 1."""
    raw, members = items(**sizes)
    start = closed_form(raw, members, torch.tensor(5.0), torch.tensor(-5.0))
    asked = normalize(items(seed=9, n_shot=2, d=raw.shape[1])[0], dim=1) if queries else None
    own = {name: torch.tensor(value) for name, value in numbers.items()}
    return start, Objective(members, normalize(raw, dim=1), asked, own, curvature)


def stepped(f: Objective, w: Tensor, count: int, step_regulariser: float) -> list[Tensor]:
    found = [w]
    for _ in range(count):
        w, g = found[-1], torch.func.grad(f)(found[-1])
        found.append(step(w, g, f.curvature(w, g), step_regulariser))
    return found


def test_the_start_scores_the_two_means_as_told():
    raw, members = items()
    w = closed_form(raw, members, torch.tensor(4.0), torch.tensor(-3.0))
    for c in range(5):
        own = raw[members[:, c] == 1].mean(0)
        others = raw[members[:, c] == 0].mean(0)
        torch.testing.assert_close(w[c] @ own, torch.tensor(4.0))
        torch.testing.assert_close(w[c] @ others, torch.tensor(-3.0))
        span = torch.stack([own, others]).T
        inside = span @ torch.linalg.lstsq(span, w[c][:, None]).solution
        torch.testing.assert_close(inside[:, 0], w[c])


@pytest.mark.parametrize("features", [torch.zeros(6, 4), torch.ones(6, 4)], ids=["black", "equal"])
def test_parallel_means_start_at_nothing(features: Tensor):
    features = features.clone().requires_grad_()
    members = torch.eye(3).repeat_interleave(2, 0)
    w = closed_form(features, members, torch.tensor(5.0), torch.tensor(-5.0))
    assert w.abs().max() < 1e-6
    w.square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_black_pictures_give_finite_predictions_and_gradients():
    task = tiny_task()
    backbone = TinyBackbone("transductive")
    learner = fsl.Learner(backbone, Fiml(task, entropy_weight=1000.0))
    episode = tiny_episodes(task, 1).unbatch()[0]
    black = fsl.LabelledSet(torch.zeros_like(episode.support.x), episode.support.y)
    value, prediction = learner.objective(episode._replace(support=black), task.loss)
    value.backward()
    assert prediction.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in learner.parameters())


def test_the_objective_by_its_definition():
    """A loop over items and classes, and the entropy of torch's own distribution."""
    start, f = setting(UNEVEN, queries=10)
    value = (UNEVEN["regularisation"] * start).square().sum() / 2
    for row, feature in enumerate(f.features):
        for c, w in enumerate(start):
            kind = "own" if f.members[row, c] else "other"
            sign, score = (1 if kind == "own" else -1), feature @ w
            x = sign * (UNEVEN[f"{kind}_target"] - score)
            r = UNEVEN[f"{kind}_weight"] * (x if x > 0 else UNEVEN[f"{kind}_slope"] * x)
            value = value + r**2 / 2
    of_queries = torch.distributions.Categorical(logits=0.7 * f.queries @ start.T).entropy()
    torch.testing.assert_close(f(start), value + 3.0 * of_queries.mean())


def test_the_curvature_of_residuals_is_that_of_their_jacobian():
    """Least squares: g' J' J g is the second derivative of F along g, by torch.func."""
    start, f = setting(PLAIN | {"regularisation": 0.4, "own_weight": 1.5})
    g = torch.func.grad(f)(start)

    def along(t: Tensor) -> Tensor:
        return f(start + t * g)

    second = torch.func.grad(torch.func.grad(along))(torch.tensor(0.0))
    torch.testing.assert_close(f.curvature(start, g), second)


def test_the_curvature_of_a_hinge_is_that_of_its_pieces():
    """F is a quadratic near every point, but where a residual is 0."""
    start, f = setting(UNEVEN)
    g = 1e-3 * torch.func.grad(f)(start)
    second = f(start + g) - 2 * f(start) + f(start - g)
    torch.testing.assert_close(f.curvature(start, g), second, rtol=1e-4, atol=1e-8)


def entropy_along(f: Objective, w: Tensor, g: Tensor) -> Tensor:
    """The second derivative of the weighted entropy along g, by a double backward."""
    assert f.queries is not None

    def value(t: Tensor) -> Tensor:
        logits = 0.7 * f.queries @ (w + t * g).T
        return 3.0 * -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    return torch.func.grad(torch.func.grad(value))(torch.tensor(0.0))


@pytest.mark.parametrize("spread", [1.0, 6.0], ids=["below", "above"])
def test_the_hessian_of_the_entropy_is_that_of_a_double_backward(spread: float):
    _, f = setting(queries=10, curvature="hessian")
    w, g = spread * torch.randn(5, 32), torch.randn(5, 32)
    without = Objective(f.members, f.features, None, f.numbers).curvature(w, g)
    expected = entropy_along(f, w, g)
    assert (expected > 0) == (spread > 1)  # it is concave near a uniform p the entropy is concave
    torch.testing.assert_close(f.curvature(w, g) - without, expected.clamp_min(0))


def test_the_covariance_is_that_of_a_softmax():
    """As the authors' code has it: the second derivative of logsumexp, of the scores' mean."""
    start, f = setting(queries=10)
    g = torch.func.grad(f)(start)

    def value(t: Tensor) -> Tensor:
        return 3.0 * (0.7 * f.queries @ (start + t * g).T).logsumexp(1).mean()

    second = torch.func.grad(torch.func.grad(value))(torch.tensor(0.0))
    without = Objective(f.members, f.features, None, f.numbers).curvature(start, g)
    torch.testing.assert_close(f.curvature(start, g) - without, second)


def test_a_step_is_the_exact_line_search_of_a_quadratic():
    start, f = setting(PLAIN | {"regularisation": 0.3})
    g = torch.func.grad(f)(start)
    after = step(start, g, f.curvature(start, g), 0.0)
    slope_after = (torch.func.grad(f)(after) * g).sum()
    torch.testing.assert_close(
        slope_after / g.square().sum(), torch.tensor(0.0), atol=1e-12, rtol=0
    )


def test_least_squares_never_rise():
    start, f = setting()
    values = [f(w).item() for w in stepped(f, start, 20, 0.05)]
    assert all(after < before for before, after in pairwise(values))


def test_many_steps_tend_to_ridge_regression():
    start, f = setting(PLAIN | {"regularisation": 0.3})
    z, y = f.features, 10 * f.members - 5
    ridge = torch.linalg.solve(z.T @ z + 0.09 * torch.eye(z.shape[1]), z.T @ y).T
    apart = [(w - ridge).norm() / ridge.norm() for w in stepped(f, start, 300, 0.0)[::100]]
    assert apart[0] > 0.1
    assert all(after < before / 4 for before, after in pairwise(apart))


@pytest.mark.parametrize("n_shot", [1, 5])
def test_five_steps_beat_five_of_gradient_descent_at_any_rate(n_shot: int):
    """From the same start, over a sweep of fixed rates: the residual that is left."""
    for seed in range(5):
        start, f = setting(seed=seed, n_shot=n_shot)
        rates = torch.logspace(-3, 1.5, 90)
        w = start.expand(len(rates), *start.shape)
        for _ in range(5):
            w = w - rates[:, None, None] * torch.func.vmap(torch.func.grad(f))(w)
        best = torch.func.vmap(f)(w).nan_to_num(torch.inf).min()
        assert f(stepped(f, start, 5, 0.05)[-1]) < 0.96 * best
        assert best < 0.2 * f(start)  # the sweep is no straw man


def test_fiml_takes_these_steps():
    """The adapter's predictors are those of the formulas on its backbone's features."""
    task = tiny_task()
    backbone, adapter = TinyBackbone(), Fiml(task, entropy_weight=3.0, temperature=0.7)
    episode = tiny_episodes(task, 1).unbatch()[0]
    learner = fsl.Learner(backbone, adapter).eval()
    found = [predict(episode.query.x) for predict in learner.trajectory(episode)]
    raw, members = backbone(episode.support.x), one_hot(episode.support.y, 3).double()
    asked = normalize(backbone(episode.query.x), dim=1)
    f = Objective(
        members, normalize(raw, dim=1), asked, {n: torch.tensor(v) for n, v in PLAIN.items()}
    )
    start = closed_form(raw, members, torch.tensor(5.0), torch.tensor(-5.0))
    expected = [asked @ w.T for w in stepped(f, start, 5, 0.05)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected).detach())


def test_classes_of_unequal_shots_have_means_of_their_own():
    (episode,) = unequal_episodes(tiny_task(), 1, (3, 1, 2)).unbatch()
    raw = episode.support.x.flatten(1)
    w = closed_form(raw, one_hot(episode.support.y).double(), torch.tensor(5.0), torch.tensor(-5.0))
    own = torch.stack([raw[episode.support.y == c].mean(0) for c in range(3)])
    torch.testing.assert_close((w * own).sum(1), torch.full((3,), 5.0))


def test_unlabelled_queries_count_only_with_their_entropy():
    task = tiny_task()
    episode, other = tiny_episodes(task, 2).unbatch()
    for weight, depends in [(1.0, True), (None, False)]:
        learner = fsl.Learner(TinyBackbone(), Fiml(task, entropy_weight=weight)).eval()
        assert learner.adapter.transductive == depends
        found = [
            learner.adapt(episode._replace(query=query))(episode.query.x)
            for query in (episode.query, other.query)
        ]
        assert torch.equal(*found) != depends

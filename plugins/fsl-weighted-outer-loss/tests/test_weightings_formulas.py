"""Each formula by hand, in NumPy and float64."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import fsl_core as fsl
from fsl_weighted_outer_loss import (
    Focal,
    GradientNorm,
    GradientSimilarity,
    LogLoss,
    Random,
    SoftmaxLoss,
    Uncertainty,
    WorstCase,
)

COLUMNS = {
    "backbone.0.weight": slice(0, 4),
    "backbone.1.weight": slice(4, 7),
    "adapter.head.weight": slice(7, 9),
}
LOSSES = np.array([0.3, 2.0, 0.05, 1.1])
GRADIENTS = np.random.default_rng(3).normal(0.3, 1.0, (4, 9)) * np.array(
    [[0.1], [3.0], [1.0], [20.0]]
)
GIVEN = fsl.Outcomes(torch.from_numpy(LOSSES), torch.from_numpy(GRADIENTS), torch.arange(4))


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def check(weighting, expected):
    np.testing.assert_allclose(
        weighting.double().weigh(GIVEN).detach().numpy(), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("all", slice(0, 9)),
        ("head", slice(7, 9)),
        ("last-block", slice(4, 7)),
        ("backbone.*", slice(0, 7)),
    ],
)
def test_gradient_similarity(part, where, temperature):
    rows = GRADIENTS[:, where]
    to_mean = [cosine(row, rows.mean(0)) for row in rows]
    pairwise = [np.mean([cosine(rows[i], rows[j]) for j in range(4) if j != i]) for i in range(4)]
    for agreement, scores in (("mean", to_mean), ("pairwise", pairwise)):
        check(
            GradientSimilarity(COLUMNS, agreement, temperature, part),
            softmax(np.array(scores) / temperature),
        )


@pytest.mark.parametrize("agreement", ["mean", "pairwise"])
def test_the_task_that_agrees_most_is_alone_as_temperature_vanishes(agreement):
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [1.0, -0.3]]).double()
    vectors = rows.numpy()
    scores = {
        "mean": [cosine(v, vectors.mean(0)) for v in vectors],
        "pairwise": [sum(cosine(v, w) for w in vectors) for v in vectors],
    }[agreement]
    weighting = GradientSimilarity({"backbone.w": slice(0, 2)}, agreement, temperature=1e-5)
    weights = weighting.weigh(fsl.Outcomes(torch.ones(4).double(), rows))
    assert float(weights[int(np.argmax(scores))]) == pytest.approx(1, abs=1e-9)


def test_gradients_that_cancel_agree_with_nothing():
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    weights = GradientSimilarity({"backbone.w": slice(0, 2)}).weigh(
        fsl.Outcomes(torch.ones(2), rows)
    )
    assert weights.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    "weighting",
    [
        GradientSimilarity(COLUMNS, temperature=1e12),
        GradientSimilarity(COLUMNS, "pairwise", temperature=1e12),
        SoftmaxLoss(temperature=1e12),
        Focal(gamma=0.0),
        WorstCase(share=1.0),
        GradientNorm(COLUMNS, floor=1.0),
        Uncertainty(),
        Uncertainty(4, of="task"),
    ],
    ids=lambda weighting: type(weighting).__name__,
)
def test_the_uniform_limit(weighting):
    np.testing.assert_allclose(
        weighting.double().weigh(GIVEN).detach().numpy(), np.full(4, 0.25), rtol=0, atol=1e-11
    )


def test_softmax_of_the_loss():
    check(SoftmaxLoss(temperature=0.7), softmax(LOSSES / 0.7))
    check(SoftmaxLoss(first="easy", temperature=0.7), softmax(-LOSSES / 0.7))


def test_hard_first_is_the_gradient_of_the_log_mean_exponential():
    temperature, step = 0.7, 1e-6

    def tilted(losses):
        return temperature * np.log(np.mean(np.exp(losses / temperature)))

    slopes = [
        (tilted(LOSSES + step * e) - tilted(LOSSES - step * e)) / (2 * step) for e in np.eye(4)
    ]
    np.testing.assert_allclose(
        SoftmaxLoss(temperature=temperature).weigh(GIVEN).numpy(), slopes, atol=1e-8
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal(gamma):
    factors = (1 - np.exp(-LOSSES)) ** gamma
    check(Focal(gamma), factors / factors.sum())


def test_focal_drops_solved_tasks_unless_all_are_solved():
    assert Focal().weigh(fsl.Outcomes(torch.tensor([0.0, 0.1]))).tolist() == pytest.approx([0, 1])
    assert Focal().weigh(fsl.Outcomes(torch.zeros(2))).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [0, 1, 0, 0]),
        (0.25, [0, 1, 0, 0]),
        (0.5, [0, 0.5, 0, 0.5]),
        (0.6, [0.4 / 2.4, 1 / 2.4, 0, 1 / 2.4]),
        (0.75, [1 / 3, 1 / 3, 0, 1 / 3]),
        (1.0, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_worst_case(share, expected):
    check(WorstCase(share), expected)


@pytest.mark.parametrize("share", np.linspace(0, 1, 11))
@pytest.mark.parametrize(
    "losses",
    [LOSSES, np.array([1.0, 3.0, 1.0, 1.0, 0.5]), np.ones(3)],
    ids=["distinct", "ties", "equal"],
)
def test_worst_case_is_the_linear_programme(share, losses):
    n = len(losses)
    bound = 1 / max(1, share * n)
    best = linprog(-losses, A_eq=np.ones((1, n)), b_eq=[1], bounds=[(0, bound)] * n)
    weights = WorstCase(float(share)).weigh(fsl.Outcomes(torch.from_numpy(losses))).numpy()
    assert weights @ losses == pytest.approx(-best.fun, abs=1e-9)
    assert weights.max() <= bound + 1e-12


def test_ties_share():
    weights = WorstCase(share=0.4).weigh(
        fsl.Outcomes(torch.tensor([1.0, 3.0, 1.0, 1.0, 0.5]).double())
    )
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 2, 1 / 6, 1 / 6, 0])


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize(("part", "where"), [("all", slice(0, 9)), ("head", slice(7, 9))])
def test_gradient_norm(alpha, part, where):
    lengths = np.linalg.norm(GRADIENTS[:, where], axis=1)
    assert lengths.min() < 0.02 * lengths.max()  # the floor is reached
    raw = LOSSES**alpha / np.maximum(lengths, 0.02 * lengths.max())
    check(GradientNorm(COLUMNS, alpha, floor=0.02, gradient=part), raw / raw.sum())


def test_equal_pull():
    weights = GradientNorm(COLUMNS, floor=1e-6).weigh(GIVEN).numpy()
    pulls = np.linalg.norm(weights[:, None] * GRADIENTS, axis=1)
    np.testing.assert_allclose(pulls, pulls[0], rtol=1e-12)


def test_gradient_norm_needs_losses_for_alpha_alone():
    assert GradientNorm(COLUMNS).needs == {"gradients"}
    assert GradientNorm(COLUMNS, alpha=1.0).needs == {"gradients", "losses"}


def test_uncertainty_of_the_loss():
    weighting = Uncertainty().double()
    with torch.no_grad():
        weighting.level.fill_(0.3)
        weighting.slope.fill_(0.8)
    s = 0.3 + 0.8 * np.log(LOSSES)
    check(weighting, np.exp(-s) / 4)
    value = weighting.objective(weighting.weigh(GIVEN), GIVEN)
    slopes = torch.autograd.grad(value, [weighting.level, weighting.slope])
    residual = 1 - np.exp(-s) * LOSSES
    np.testing.assert_allclose(
        [float(g) for g in slopes], [residual.mean(), (residual * np.log(LOSSES)).mean()], rtol=1e-9
    )


def test_uncertainty_of_the_task():
    weighting, places = Uncertainty(6, of="task").double(), [5, 0, 2, 0]
    s = np.array([0.1, -0.4, 0.9, 2.0, -1.0, 0.3])
    weighting.log_variance.data.copy_(torch.from_numpy(s))
    given = GIVEN._replace(ids=torch.tensor(places))
    weights = weighting.weigh(given)
    np.testing.assert_allclose(weights.detach().numpy(), np.exp(-s[places]) / 4, rtol=1e-12)
    (slope,) = torch.autograd.grad(weighting.objective(weights, given), [weighting.log_variance])
    expected = np.zeros(6)
    np.add.at(expected, places, (1 - np.exp(-s[places]) * LOSSES) / 4)
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-9, atol=1e-12)


def minimise(weighting):
    optimizer = torch.optim.LBFGS(
        weighting.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15
    )

    def closure():
        optimizer.zero_grad()
        value = weighting.objective(weighting.weigh(GIVEN), GIVEN)
        value.backward()
        return value

    for _ in range(20):
        optimizer.step(closure)
    return weighting


def test_learned_variances_end_at_the_logarithm_of_the_loss():
    of_task, of_loss = (
        minimise(Uncertainty(4, of="task").double()),
        minimise(Uncertainty().double()),
    )
    np.testing.assert_allclose(of_task.log_variance.detach().numpy(), np.log(LOSSES), atol=1e-6)
    assert [of_loss.level.item(), of_loss.slope.item()] == pytest.approx([0, 1], abs=1e-6)
    np.testing.assert_allclose(of_loss.weigh(GIVEN).detach().numpy(), 1 / LOSSES / 4, rtol=1e-5)


def test_random_weights_have_their_distribution():
    torch.manual_seed(4)
    drawn = {
        kind: np.stack([Random(kind).weigh(GIVEN).numpy() for _ in range(4000)])
        for kind in ("normal", "simplex")
    }
    torch.manual_seed(4)
    normal = np.stack([softmax(torch.randn(4).numpy()) for _ in range(4000)])
    np.testing.assert_allclose(drawn["normal"], normal, rtol=1e-5)
    np.testing.assert_allclose(drawn["simplex"].mean(0), 0.25, atol=0.015)
    np.testing.assert_allclose(drawn["simplex"].var(0), 3 / 80, rtol=0.1)  # of 4 components


@pytest.mark.parametrize("steps", [1, 5])
def test_log_loss_is_the_gradient_of_the_mean_logarithm(steps):
    """Autograd of mean (1 / steps) log loss against the gradients of tasks, weighed."""
    theta = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    inputs = torch.from_numpy(GRADIENTS[:, :2])
    losses = (inputs @ theta - torch.from_numpy(LOSSES)).square()
    (expected,) = torch.autograd.grad((losses.log() / steps).mean(), theta, retain_graph=True)
    weights = LogLoss(steps).weigh(fsl.Outcomes(losses.detach()))
    (found,) = torch.autograd.grad((weights * losses).sum(), theta)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_solved_task_weighs_as_the_floor_says():
    weights = LogLoss(floor=0.5).weigh(fsl.Outcomes(torch.tensor([0.0, -1.0, 0.5, 2.0])))
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.125])

"""The conformance kit over every weighting and its options, and what else all of them keep."""

import pytest
import torch

import fsl_core as fsl
import fsl_weighted_outer_loss as plugin
from fsl_core.testing import WeightingContract

COLUMNS = {
    "backbone.0.weight": slice(0, 3),
    "backbone.1.weight": slice(3, 4),
    "adapter.head.weight": slice(4, 6),
}
TASKS = 5
EVERY = {
    "similarity": lambda: plugin.GradientSimilarity(COLUMNS),
    "similarity-pairwise": lambda: plugin.GradientSimilarity(
        COLUMNS, agreement="pairwise", temperature=0.1
    ),
    "similarity-head": lambda: plugin.GradientSimilarity(COLUMNS, gradient="head"),
    "hard": lambda: plugin.SoftmaxLoss(temperature=0.2),
    "easy": lambda: plugin.SoftmaxLoss(first="easy"),
    "focal": plugin.Focal,
    "max": plugin.WorstCase,
    "cvar": lambda: plugin.WorstCase(share=0.5),
    "log": plugin.LogLoss,
    "uncertainty": plugin.Uncertainty,
    "uncertainty-of-task": lambda: plugin.Uncertainty(TASKS, of="task"),
    "norm": lambda: plugin.GradientNorm(COLUMNS),
    "norm-alpha": lambda: plugin.GradientNorm(COLUMNS, alpha=1.5, gradient="last-block"),
    "min-norm": lambda: plugin.ConflictFree(COLUMNS),
    "pcgrad": lambda: plugin.ConflictFree(COLUMNS, method="pcgrad"),
    "memory": lambda: plugin.Memory(TASKS),
    "memory-progress": lambda: plugin.Memory(TASKS, score="progress", temperature=2.0),
    "memory-sum": lambda: plugin.Memory(TASKS, score="sum", temperature=10.0),
    "random": plugin.Random,
    "random-simplex": lambda: plugin.Random(distribution="simplex"),
}
DRAWN = ("random", "random-simplex", "pcgrad")


def contract(label: str) -> type[WeightingContract]:
    body = {"make": lambda self: EVERY[label](), "random": label in DRAWN}
    return type(f"Test{label.title().replace('-', '')}", (WeightingContract,), body)


globals().update({kind.__name__: kind for kind in map(contract, EVERY)})


def outcomes(losses, gradients=None, dtype=torch.float32):
    losses = torch.tensor(losses, dtype=dtype)
    gradients = losses[:, None] * torch.ones(6, dtype=dtype) if gradients is None else gradients
    return fsl.Outcomes(losses, gradients, torch.arange(len(losses)))


def test_every_weighting_is_under_contract():
    assert {type(make()) for make in EVERY.values()} == set(plugin.WEIGHTINGS)
    assert {f"Test{label.title().replace('-', '')}" for label in EVERY} <= set(globals())


@pytest.mark.parametrize("label", EVERY)
@pytest.mark.parametrize(
    "losses", [[1e30], [0.0], [0.0, 1e30], [1e30, 1e30, 1e-30, 0.0, 1.0], [3e38, 1e-45]]
)
def test_weights_are_finite_at_any_size_in_single_precision(label, losses):
    torch.manual_seed(0)
    weighting = EVERY[label]()
    weights = weighting.weigh(outcomes(losses))
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert weights.sum() > 0
    if weighting.total == "one":
        assert float(weights.detach().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("label", EVERY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_left_to_the_outer_loop(label, bad):
    """It says which episode; a weighting that raised would hide that."""
    gradients = torch.ones(3, 6)
    gradients[1, 2] = bad
    assert EVERY[label]().weigh(outcomes([1.0, bad, 2.0], gradients)).shape == (3,)


@pytest.mark.parametrize("label", [label for label in EVERY if label not in DRAWN])
def test_two_equal_tasks_among_others_weigh_the_same(label):
    gradients = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients[3] = gradients[0]
    weights = (
        EVERY[label]().double().weigh(outcomes([0.7, 0.2, 1.5, 0.7, 3.0], gradients, torch.float64))
    )
    assert float(weights[0].detach()) == pytest.approx(float(weights[3].detach()), abs=1e-12)


@pytest.mark.parametrize("label", sorted({*EVERY} - {"log"}))
def test_a_single_task_weighs_one(label):
    assert EVERY[label]().weigh(outcomes([0.4])).tolist() == pytest.approx([1])


def test_all_are_registered():
    found = []
    plugin.fsl_register_weightings(found.append)
    names = {
        "gradient-similarity",
        "softmax-loss",
        "focal",
        "worst-case",
        "log-loss",
        "uncertainty",
        "gradient-norm",
        "conflict-free",
    }
    assert {weighting.name for weighting in found} == names | {"memory", "random"}

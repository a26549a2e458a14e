"""What the options mean, what is refused, and what adaptation leaves alone."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fsl_core as fsl
import fsl_wormhole
from fsl_wormhole import ThresholdComparison, WaveletTransform, Wormhole
from fsl_wormhole.multipliers import Multipliers

TASK = fsl.TaskShape(
    "classification", n_way=3, n_shot=2, n_query=3, input_shape=(1, 4, 4), output_dim=3
)
STANDING = (
    "After the abstract of arXiv 2212.14094. "
    "The update rule, defaults and tasks are this project's interpretation; "
    "the paper's text was not available"
)
RECIPES = Path(__file__).parents[3] / "recipes" / "wormhole"


class SmallNet(nn.Sequential):
    """Conv and BatchNorm with running statistics, which a careless inner loop would move; (n, 1, 4,
    4) -> (n, 8)."""

    feature_dim = 8

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()
        )


class Uneven(nn.Module):
    """One module whose tensors differ in their rows."""

    feature_dim = 4

    def __init__(self):
        super().__init__()
        self.project, self.scales = nn.Parameter(torch.ones(4, 16)), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (self.project @ x.flatten(1).T).T * self.scales.repeat(2)


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


def make(backbone=SmallNet, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = backbone()
        return fsl.Learner(backbone, Wormhole(TASK, backbone, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.0}, r"inner_lr: 0\.0\. A number above 0"),
        ({"multiplier_lr": -0.1}, r"multiplier_lr: -0\.1\. A number from 0, or None"),
        ({"inner_steps": -1}, r"wormhole: inner_steps: -1\. A number from 0"),
        ({"test_steps": -2}, r"wormhole: test_steps: -2\. A number from 0, or None"),
        ({"order": 3}, r"order: 3\. 1 or 2"),
        ({"multiplies": "head"}, r"multiplies: 'head'\. 'output', 'layers' or 'all'"),
        ({"multipliers": "per-layer"}, r"multipliers: 'per-layer'\. 'scalar' or 'per-output'"),
        (
            {"multiplies": "all", "multipliers": "per-output"},
            r"multipliers: 'per-output' with multiplies: 'all', which has one factor\. 'scalar', "
            r"or multiplies: 'layers'",
        ),
        (
            {"adapt_weights": False, "multiplier_lr": 0.0},
            r"adapt_weights: false with multiplier_lr: 0, which adapts nothing\. true, or another "
            r"multiplier_lr",
        ),
        (
            {"multiplies": "layers", "initial": 0.0},
            r"initial: 0 with multiplies: 'layers', so the gradient of every layer is zero and "
            r"stays zero\. Another number, or ",
        ),
        ({"multiplies": "all", "initial": 0}, r"initial: 0 with multiplies: 'all'"),
        (
            {"multiplies": "layers", "multipliers": "per-output", "backbone": Uneven},
            r"multipliers: 'per-output', but the weights under one factor, 'backbone', differ in "
            r"their rows\. 'scalar', ",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def factors_of(**options):
    return {
        name: tuple(shape) for name, shape in make(**options).adapter.multipliers.shapes.items()
    }


def test_factors():
    layers = ("backbone.0", "backbone.1", "head")
    assert factors_of() == {"output": ()}
    assert factors_of(multipliers="per-output") == {"output": (3,)}
    assert factors_of(multiplies="all") == {"all": ()}
    assert factors_of(multiplies="layers") == dict.fromkeys(layers, ())
    assert factors_of(multiplies="layers", multipliers="per-output") == dict(
        zip(layers, [(2,), (2,), (3,)], strict=True)
    )


def test_factors_on_weights_multiply_their_rows():
    weights = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    multipliers = Multipliers("layers", "per-output", 1.0, False, weights, 2)
    scaled = multipliers.on_weights(weights, {"head": torch.tensor([2.0, -3.0])})
    assert scaled["head.weight"].tolist() == [[2.0] * 3, [-3.0] * 3]
    assert scaled["head.bias"].tolist() == [2.0, -3.0]


@pytest.mark.parametrize("multiplies", ["output", "layers", "all"])
def test_start_at_one_is_the_network_itself(support, query, multiplies):
    learner = make(multiplies=multiplies, inner_steps=0).eval()
    torch.testing.assert_close(
        learner(support, query.x), learner.adapter.head(learner.backbone(query.x))
    )


def test_start_at_zero_predicts_zero_and_moves_the_factor_alone(support, query):
    learner = make(initial=0.0, inner_steps=1, inner_lr=0.5, multiplier_lr=0.7)
    path = learner.trajectory(fsl.Episode(support, query, torch.tensor(0)))
    assert not path[0](query.x).any()
    plain, moved = learner.adapter.head(copy.deepcopy(learner.backbone)(query.x)), path[1](query.x)
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(moved, plain * (moved[0, 0] / plain[0, 0]))


def test_rate_of_the_factors_is_that_of_the_weights_unless_given(support, query):
    shared, given = make(inner_lr=0.2), make(inner_lr=0.2, multiplier_lr=0.2)
    assert torch.equal(shared(support, query.x), given(support, query.x))
    assert not torch.equal(
        shared(support, query.x), make(inner_lr=0.2, multiplier_lr=0.3)(support, query.x)
    )


def test_learned_values_start_where_fixed_ones_stay(support, query):
    fixed = make(multiplies="layers", initial=0.7, multiplier_lr=0.3)
    learned = make(
        multiplies="layers",
        initial=0.7,
        multiplier_lr=0.3,
        learn_initial=True,
        learn_multiplier_lr=True,
    )
    assert torch.equal(fixed(support, query.x), learned(support, query.x))
    count = [sum(p.numel() for p in learner.parameters()) for learner in (fixed, learned)]
    assert count[1] == count[0] + 3 + 1


@pytest.mark.parametrize("options", [{}, {"multiplies": "layers"}, {"adapt_weights": False}])
def test_steps_lower_the_support_loss(support, options):
    learner = make(inner_steps=10, inner_lr=0.05, **options)
    path = learner.trajectory(fsl.Episode(support, support, torch.tensor(0)))
    losses = [TASK.loss(predict(support.x), support.y).item() for predict in path]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("training", [True, False])
def test_trajectory_ends_in_what_adapt_returns(support, query, training):
    learner = make(inner_steps=2, test_steps=3).train(training)
    path = [
        predict(query.x)
        for predict in learner.trajectory(fsl.Episode(support, query, torch.tensor(0)))
    ]
    assert len(path) == (3 if training else 4)
    assert torch.equal(path[0], make(inner_steps=0).train(training)(support, query.x))
    assert torch.equal(path[1], make(inner_steps=1).train(training)(support, query.x))
    assert torch.equal(path[-1], learner(support, query.x))
    assert all(logits.requires_grad == training for logits in path)


def test_evaluation_keeps_no_graph_whatever_the_grad_mode(support, query):
    learner = make(learn_initial=True, learn_multiplier_lr=True).eval()
    predictions = learner(support, query.x)
    with torch.no_grad():
        without = learner(support, query.x)
    assert torch.equal(predictions, without)
    assert not predictions.requires_grad


def test_nothing_of_the_module_changes(support, query):
    learner = make()
    before = copy.deepcopy(learner.state_dict())
    learner(support, query.x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert learner.adapter.head.weight.grad is not None


def frozen(**options):
    """A learner whose backbone requires no gradient."""
    return make(lambda: SmallNet().requires_grad_(False), **options)


@pytest.mark.parametrize("multiplies", ["output", "layers", "all"])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_weights_are_not_adapted(support, query, multiplies, training):
    learner = frozen(multiplies=multiplies, initial=2.0).train(training)
    assert not any(name.startswith("backbone.") for name in learner.adapter.adapted)
    layer = next(m for m in learner.backbone.modules() if list(m.parameters(recurse=False)))
    own, seen = layer.weight, []
    layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    predict = learner.adapt(fsl.Episode(support, query, torch.tensor(0)))
    seen.clear()
    predict(query.x)
    assert torch.equal(seen[0], own)


def test_frozen_weights_are_adapted_where_an_option_says_so(support, query):
    learner = frozen(adapt_frozen=True)
    predictions = learner(support, query.x)
    torch.testing.assert_close(predictions, make()(support, query.x))
    predictions.sum().backward()
    assert all(p.grad is None for p in learner.backbone.parameters())
    assert learner.adapter.head.weight.grad is not None


@pytest.mark.parametrize("order", [1, 2])
def test_equal_support_items_give_finite_results(query, order):
    same = fsl.LabelledSet(torch.ones(6, *TASK.input_shape), torch.arange(3).repeat_interleave(2))
    learner = make(order=order, learn_multiplier_lr=True)
    value, prediction = learner.objective(fsl.Episode(same, query, torch.tensor(0)), TASK.loss)
    value.backward()
    assert prediction.isfinite().all()
    assert all(p.grad.isfinite().all() for p in learner.parameters())


def test_support_set_itself_reaches_the_backbone(support, query):
    """Norm policy `support` recognises the support set by identity."""
    seen = []
    learner = make(inner_steps=2)
    learner.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    learner(support, query.x)
    assert [x is support.x for x in seen] == [True, True, False]


def test_survives_copies_and_state_dicts(support, query):
    learner = make(learn_initial=True, learn_multiplier_lr=True)
    expected = learner(support, query.x)
    assert torch.equal(copy.deepcopy(learner)(support, query.x), expected)
    other = make(learn_initial=True, learn_multiplier_lr=True, multiplier_lr=0.9, initial=0.3)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other(support, query.x), expected)


def test_all_parts_are_registered():
    adapters, episodes = [], []
    fsl_wormhole.fsl_register_adapters(adapters.append)
    fsl_wormhole.fsl_register_episodes(episodes.append)
    assert [part.name for part in (*adapters, *episodes)] == [
        "wormhole",
        "threshold-comparison",
        "wavelet-transform",
    ]


def words(text):
    """Without line breaks, comment signs and the marks of links."""
    return " ".join(re.sub(r"\[|\]\(.*?\)|^[#>]", "", text, flags=re.MULTILINE).split())


@pytest.mark.parametrize(
    "part", [fsl_wormhole, Wormhole, Multipliers, ThresholdComparison, WaveletTransform]
)
def test_docstrings_say_what_is_interpretation(part):
    assert STANDING in words(part.__doc__)


def test_readme_says_what_is_interpretation():
    assert STANDING in words((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"))


def test_recipes_say_what_is_interpretation():
    if not RECIPES.parent.is_dir():
        pytest.skip("outside of the repository there are no recipes")
    pages = sorted(RECIPES.glob("*.yaml"))
    assert len(pages) >= 4
    for page in pages:
        assert STANDING in words(page.read_text(encoding="utf-8")), page

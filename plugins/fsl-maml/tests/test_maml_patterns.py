"""`test_adapted`: what the inner loop adapts in evaluation."""

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_maml import Maml

TASK = fsl.TaskShape("classification", n_way=3, n_shot=2, n_query=3, input_shape=(4,), output_dim=3)
LAST = ["backbone.2.*", "head.*"]


class Net(nn.Sequential):
    feature_dim = 6

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())


@pytest.fixture
def support():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return fsl.LabelledSet(x, torch.arange(3).repeat_interleave(2))


def made(**options):
    torch.manual_seed(0)
    backbone = Net().double()
    return backbone, Maml(TASK, backbone, inner_lr=0.5, inner_steps=3, **options).double()


def adapted(support, training=False, **options):
    backbone, adapter = made(**options)
    return adapter.train(training).adapt(backbone, support)(support.x)


@pytest.mark.parametrize("pattern", [LAST, [["all"], ["head"], LAST]])
def test_evaluation_adapts_the_pattern_as_if_trained_with_it(support, pattern):
    found = adapted(support, test_adapted=pattern)
    torch.testing.assert_close(found, adapted(support, adapted=pattern), rtol=0, atol=0)
    assert not torch.allclose(found, adapted(support))


def test_training_adapts_all(support):
    found = adapted(support, training=True, test_adapted=LAST)
    torch.testing.assert_close(found, adapted(support, training=True), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["functional", "higher"])
def test_no_graph_below_the_lowest_adapted_layer(support, engine):
    backbone, adapter = made(test_adapted=LAST, engine=engine)
    seen = {0: [], 2: []}
    for place, found in seen.items():
        backbone[place].register_forward_hook(
            lambda module, inputs, output, found=found: found.append(output.requires_grad)
        )
    with torch.no_grad():
        adapter.eval().adapt(backbone, support)
    assert seen == {0: [False] * 3, 2: [True] * 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"adapted": "head", "test_adapted": "all"},
            r"test_adapted: backbone.0.weight, which training does not adapt. Patterns of head",
        ),
        ({"test_adapted": "neck.*"}, r"test_adapted: 'neck.*' matches no parameter. all, head"),
        ({"test_adapted": [["head"]] * 4}, r"test_adapted: lists for 4 steps. At most 3"),
    ],
)
def test_refused_patterns(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)

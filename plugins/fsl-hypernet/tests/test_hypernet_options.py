"""What is refused, what the options allow, and backbones from elsewhere."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import fsl_core as fsl
import fsl_hypernet
from fsl_hypernet import Hypernet

TASK = fsl.TaskShape(
    "classification", n_way=3, n_shot=2, n_query=3, input_shape=(1, 4, 4), output_dim=3
)
REGRESSION = fsl.TaskShape(
    "regression", n_way=1, n_shot=5, n_query=7, input_shape=(1,), output_dim=1
)
SIX_WAY = replace(TASK, n_way=6, output_dim=6)


class SmallNet(nn.Sequential):
    """Conv and BatchNorm with running statistics, which a careless adapter would move; (n, 1, 4, 4)
    -> (n, 8)."""

    feature_dim = 8

    def __init__(self, *last):
        super().__init__(
            nn.Conv2d(1, 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Flatten(),
            *last,
        )


class Pixels(nn.Flatten):
    feature_dim = 16


class Normed(fsl.NormedBackbone):
    feature_dim = 16

    def __init__(self, norm):
        super().__init__(norm)
        self.normalise = fsl.Norm(norm, 1)

    def features(self, x):
        return self.normalise(x).flatten(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def labelled(task, count, generator):
    x = torch.randn(task.n_way * count, *task.input_shape, generator=generator)
    return fsl.LabelledSet(x, torch.arange(task.n_way).repeat_interleave(count))


def make(task=TASK, backbone=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = backbone or SmallNet()
        return fsl.Learner(backbone, Hypernet(task, backbone, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, r"hypernet: head: 'linear'\. 'class', 'task' or 'kernel'"),
        ({"base": "zero"}, r"base: 'zero'\. 'prototype' or 'none', or None"),
        ({"modulate": "lora"}, r"modulate: 'lora'\. 'none', 'film' or 'low-rank'"),
        ({"rank": 0}, r"rank: 0\. A number above 0"),
        ({"embedding": -1}, r"embedding: -1\. A number above 0"),
        ({"hidden": 0}, r"hidden: 0\. A number above 0"),
        ({"target": 0}, r"target: 0\. A number above 0"),
        ({"kernel": "rbf"}, r"kernel: 'rbf'\. 'cosine-distance' or 'cosine'"),
        (
            {"support_rows": "rows"},
            r"support_rows: 'rows'\. 'class-means' or 'items', or None",
        ),
        (
            {"task": REGRESSION, "head": "task", "support_rows": "class-means"},
            r"support_rows: 'class-means' of a regression task, which has no classes\. null or",
        ),
        (
            {"head": "kernel", "base": "prototype"},
            r"base: 'prototype' for head: 'kernel', which has no class means to start from\. null "
            r"or 'none'",
        ),
        (
            {"task": REGRESSION},
            r"head: 'class' for a regression task, which has no classes\. 'task', whose embedding "
            r"sees the values",
        ),
        ({"task": REGRESSION, "head": "kernel"}, r"head: 'kernel' for a regression task"),
        (
            {"task": REGRESSION, "head": "task", "base": "prototype"},
            r"base: 'prototype' for a regression task, which has no class means to start from\. "
            r"null or 'none'",
        ),
        (
            {"backbone": Pixels(), "modulate": "film"},
            r"modulate: 'film' of a backbone \(Pixels\) without norm layers with scale and shift, "
            r"convolutions or linear "
            r"layers\. 'none', or a backbone with such layers",
        ),
        (
            {"backbone": Normed("transductive"), "modulate": "low-rank"},
            r"modulate: 'low-rank' of a backbone \(Normed\) without convolutions or linear "
            r"layers\. 'none', or a",
        ),
        (
            {"backbone": SmallNet(nn.Dropout(0.5)), "checkpoint": True},
            r"checkpoint: Dropout in the backbone, which would draw other numbers when it is "
            r"computed again\. False, or dropout rate 0",
        ),
        (
            {"backbone": Normed("support"), "checkpoint": True},
            r"checkpoint: a backbone of norm policy 'support', whose reference is no longer there "
            r"in the backward pass\. False, or another",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_is_registered():
    found = []
    fsl_hypernet.fsl_register_adapters(found.append)
    assert found == [Hypernet]
    assert Hypernet.name == "hypernet"
    assert Hypernet.vectorizable
    assert make(checkpoint=True).adapter.vectorizable


@pytest.mark.parametrize("modulate", ["none", "film", "low-rank"])
@pytest.mark.parametrize("base", ["prototype", "none"])
def test_class_head_serves_any_number_of_ways(generator, modulate, base):
    trained = make(modulate=modulate, base=base)
    twin = make(SIX_WAY, modulate=modulate, base=base)
    twin.load_state_dict(trained.state_dict())
    assert twin(labelled(SIX_WAY, 1, generator), labelled(SIX_WAY, 2, generator).x).shape == (12, 6)


@pytest.mark.parametrize("head", ["task", "kernel"])
def test_other_heads_are_made_for_one_number_of_ways(head):
    sizes = [
        {name: value.shape for name, value in make(task, head=head).state_dict().items()}
        for task in (TASK, SIX_WAY)
    ]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("head", ["class", "task", "kernel"])
def test_any_number_of_shots(generator, head):
    learner = make(head=head, modulate="film")
    for shots in (1, 7):
        assert learner(labelled(TASK, shots, generator), labelled(TASK, 2, generator).x).shape == (
            6,
            3,
        )


@pytest.mark.parametrize("modulate", ["none", "film", "low-rank"])
def test_regression(generator, modulate):
    backbone = nn.Sequential(nn.Linear(1, 6), nn.Tanh())
    backbone.feature_dim = 6
    learner = make(REGRESSION, backbone, head="task", modulate=modulate)
    support, query = (
        fsl.LabelledSet(x, x.sin()) for x in torch.randn(2, 5, 1, generator=generator)
    )
    value, prediction = learner.objective(
        fsl.Episode(support, query, torch.tensor(0)), REGRESSION.loss
    )
    assert prediction.shape == (5, 1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = learner.objective(fsl.Episode(support, query, torch.tensor(0)), REGRESSION.loss)
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * value


@pytest.mark.parametrize(
    "options",
    [{}, {"modulate": "film"}, {"modulate": "low-rank"}, {"head": "kernel"}, {"checkpoint": True}],
)
def test_foreign_batch_norm_is_left_alone(generator, options):
    learner = make(**options).train()
    support, query = labelled(TASK, 2, generator), labelled(TASK, 3, generator)
    before = copy.deepcopy(learner.state_dict())
    learner(support, query.x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert any(parameter.grad.count_nonzero() for parameter in learner.backbone.parameters())


def test_film_prefers_norm_layers(generator):
    assert [layer.names for layer in make(modulate="film").adapter.modulation.layers] == [
        ("1.weight", "1.bias")
    ]
    bare = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 8))
    bare.feature_dim = 8
    modulation = make(backbone=bare, modulate="film").adapter.modulation
    assert [layer.names for layer in modulation.layers] == [("0.weight",), ("2.weight", "2.bias")]
    assert modulation.sizes == [2, 8, 8]


def test_a_frozen_backbone_is_modulated_all_the_same(generator):
    learner = make(modulate="film")
    learner.backbone.requires_grad_(False)
    support, query = labelled(TASK, 2, generator), labelled(TASK, 3, generator)
    loss, _ = learner.objective(fsl.Episode(support, query, torch.tensor(0)), TASK.loss)
    loss.backward()
    assert learner.adapter.modulation.generate.weight.grad.count_nonzero()
    assert all(parameter.grad is None for parameter in learner.backbone.parameters())


def test_support_loss_counts_every_row_of_both_sets(generator):
    learner = make(support_loss=True)
    assert learner.adapter.support_rows == "items"
    assert make(head="kernel").adapter.support_rows == "class-means"
    support, query = labelled(TASK, 2, generator), labelled(TASK, 3, generator)
    loss, prediction = learner.objective(fsl.Episode(support, query, torch.tensor(0)), TASK.loss)
    on_support, on_query = (
        TASK.loss(learner(support, items.x), items.y) for items in (support, query)
    )
    torch.testing.assert_close(loss, (6 * on_support + 9 * on_query) / 15)
    assert prediction.shape == (9, 3)


def test_survives_copies(generator):
    learner = make(modulate="low-rank", checkpoint=True)
    support, query = labelled(TASK, 2, generator), labelled(TASK, 3, generator)
    assert torch.equal(copy.deepcopy(learner)(support, query.x), learner(support, query.x))

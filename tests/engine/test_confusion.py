"""What was taken for what, against an independent count from the items of each episode."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.mixture import Mixture
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone
from fsl_core.data.groups import unbatch
from fsl_core.engine import evaluation
from fsl_core.engine.confusion import NONE_OF_THEM, per_class
from fsl_core.engine.evaluation import evaluate, predict_episodes
from fsl_core.engine.fitting import Fitting

SHAPE = (5,)


class Marked(fsl.PooledEpisodes):
    """Noisy items, whose first number is that of their class."""

    name = "marked"

    def __init__(self, n_way=3, n_shot=2, n_query=4, first=0, **options):
        super().__init__(n_way, n_shot, n_query, input_shape=SHAPE, **options)
        self.first = first

    def load(self, split):
        generator = torch.Generator().manual_seed(len(split))
        items = torch.randn(7, 12, *SHAPE, generator=generator)
        items[..., 0] = self.first + torch.arange(7)[:, None]
        return fsl.LabelledPool.from_classes((f"c{self.first + c}", items[c]) for c in range(7))


class Blind(nn.Module):
    """Does not see the mark, so that there are mistakes."""

    feature_dim = 4

    def forward(self, x):
        return x[:, 1:]


VARYING = [
    {"n_way": (2, 5)},
    {"n_way": (2, 6), "n_shot": (1, 3), "sampling": "class"},
    {"n_way": (5, 9), "n_shot": (1, 9), "n_query": 3, "sampling": "meta-dataset"},
]


def marks(part: fsl.LabelledSet) -> list[str]:
    return [f"c{int(mark)}" for mark in part.x[:, 0]]


@pytest.mark.parametrize("options", [{}, *VARYING], ids=str)
def test_names_are_those_of_the_items_in_the_order_of_labels(options):
    source, indices = Marked(**options), [*range(30), 4]
    names = source.classes_of("test", indices, 3)
    for own, (shape, episode) in zip(
        names, unbatch(source.groups("test", indices, 3)), strict=True
    ):
        assert len(set(own)) == len(own) == shape.n_way
        assert [own[label] for label in episode.support.y] == marks(episode.support)
        assert [own[label] for label in episode.query.y] == marks(episode.query)


def centroids(task: fsl.TaskShape) -> fsl.Learner:
    return fsl.Learner(Blind(), NearestCentroid(task))


@pytest.mark.parametrize("options", [{}, *VARYING], ids=str)
def test_counts_are_those_of_the_predictions(options):
    source = Marked(**options)
    learner = Fitting(centroids(source.task), source.task, centroids)
    found = evaluate(learner, source, "test", 45, seed=2)
    expected: Counter[tuple[str, str]] = Counter()
    for episode, prediction in predict_episodes(learner, source, "test", range(45), 2):
        names = dict(zip(episode.support.y.tolist(), marks(episode.support), strict=True))
        predicted = [names[label] for label in prediction.argmax(-1).tolist()]
        expected.update(zip(marks(episode.query), predicted, strict=True))
    assert found.confusion == expected
    assert list(found.confusion) == sorted(expected)
    assert any(right != predicted for right, predicted in expected)
    if not options:  # as many queries of each class and episode
        shares = per_class(found.confusion)
        queries = sum(row["queries"] for row in shares.values())
        right = sum(row["queries"] * row["right"] for row in shares.values())
        assert queries == 45 * 3 * 4
        assert right / queries == pytest.approx(sum(found.scores) / 45)


class Last(fsl.Adapter):
    """Always answers the last of its ways."""

    name = "last"

    def __init__(self, task):
        super().__init__()
        self.n_way = task.n_way

    def adapt(self, backbone, support):
        return lambda x: torch.arange(float(self.n_way)).expand(len(x), -1)


def test_a_head_with_more_ways_than_the_episode_answers_none_of_its_classes():
    source = Marked()
    learner = fsl.Learner(Blind(), Last(fsl.TaskShape("classification", 5, 2, 4, SHAPE, 5)))
    found = evaluate(learner, source, "test", 5).confusion
    assert {predicted for _, predicted in found} == {NONE_OF_THEM}
    assert sum(found.values()) == 5 * 3 * 4


def test_shares_of_classes():
    counts = {("a", "a"): 3, ("a", "b"): 1, ("b", "a"): 2}
    assert per_class(counts) == {
        "a": {"queries": 4, "right": 0.75},
        "b": {"queries": 2, "right": 0.0},
    }


def test_features_judged_in_batches_are_counted_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    source = Marked()
    mapped = FeatureEpisodes(source, FrozenBackbone(Blind(), SHAPE, "float32"))
    assert mapped.classes_of("test", range(30), 1) == source.classes_of("test", range(30), 1)
    learner = fsl.Learner(mapped.backbone, NearestCentroid(mapped.task))
    alone = evaluate(fsl.Learner(Blind(), NearestCentroid(source.task)), source, "test", 45)
    monkeypatch.setattr(evaluation.Workers, "map", None)  # one by one is not taken
    together = evaluate(learner, mapped, "test", 45)
    assert together.confusion == alone.confusion


@pytest.mark.parametrize("ways", [3, (2, 5)], ids=str)
def test_a_mixture_names_the_classes_of_its_sources(ways):
    mixed = Mixture([(Marked(ways), 1.0), (Marked(ways, first=20), 2.0)])
    names = mixed.classes_of("test", range(40), 0)
    for own, (_, episode) in zip(names, unbatch(mixed.groups("test", range(40), 0)), strict=True):
        plain = [name.partition(": ")[2] for name in own]
        assert [plain[label] for label in episode.query.y] == marks(episode.query)
        assert set(own) <= set(mixed.inspect("test").classes)
    assert {name.partition(":")[0] for own in names for name in own} == {"marked 0", "marked 1"}


class Nameless(fsl.EpisodeSource):
    name = "nameless"

    def __init__(self):
        self.source = Marked()
        self.task = self.source.task

    def batch(self, *arguments):
        return self.source.batch(*arguments)


def test_a_source_without_names_has_no_counts():
    nameless = Nameless()
    learner = fsl.Learner(Blind(), NearestCentroid(nameless.task))
    assert evaluate(learner, nameless, "test", 5).confusion == {}
    mixed = Mixture([(Marked(), 1.0), (nameless, 1.0)])
    assert mixed.classes_of("test", range(5), 0) is None

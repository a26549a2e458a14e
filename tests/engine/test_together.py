"""Episodes judged in batches give what they give one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.arrays import Arrays
from fsl_core.builtin.linear_probe import LinearProbe
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.data.arrays import ArrayEpisodes
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone
from fsl_core.engine import evaluation
from fsl_core.engine.together import judged_together
from fsl_core.testing import GradientSteps

SHAPE = (7,)


class Vectors(fsl.PooledEpisodes):
    name = "vectors"

    def __init__(self):
        super().__init__(4, 3, 5, input_shape=SHAPE)

    def load(self, split):
        generator = torch.Generator().manual_seed(len(split))
        means = torch.randn(6, 1, *SHAPE, generator=generator)
        items = means + 2 * torch.randn(6, 12, *SHAPE, generator=generator)
        return fsl.LabelledPool.from_classes((f"{c}", items[c]) for c in range(6))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), nn.Tanh())
    net.feature_dim = 9
    mapped = FeatureEpisodes(Vectors(), FrozenBackbone(net, SHAPE, "float32"))
    mapped.pool("test")  # in float32, before a test turns the backbone into float64
    return mapped


class Doubles(fsl.EpisodeSource):
    """Another source in float64."""

    name = "doubles"

    def __init__(self, source):
        self.source, self.task = source, source.task

    def batch(self, *arguments):
        (sx, sy), (qx, qy), ids = self.source.batch(*arguments)
        return fsl.Episode(fsl.LabelledSet(sx.double(), sy), fsl.LabelledSet(qx.double(), qy), ids)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (NearestCentroid, {"power": 0.5, "centre": "support", "unit_length": True}),
        (NearestCentroid, {"distance": "cosine"}),
        (LinearProbe, {}),
        (LinearProbe, {"power": 0.5, "centre": "train"}),
    ],
)
def test_the_numbers_are_those_of_one_after_the_other(make, options, source, monkeypatch, float64):
    learner = fsl.Learner(
        source.backbone, make(source.task, backbone=source.backbone, **options)
    ).double()
    assert judged_together(learner)
    doubles = Doubles(source)
    together = evaluation.evaluate(learner, doubles, "test", 50)
    monkeypatch.setattr(evaluation, "judged_together", lambda *_: False)
    alone = evaluation.evaluate(learner, doubles, "test", 50)
    assert together.scores == alone.scores
    torch.testing.assert_close(
        torch.tensor(together.losses), torch.tensor(alone.losses), rtol=0, atol=1e-9
    )
    assert together.episode_set == alone.episode_set
    assert len(set(together.scores)) > 3


def test_the_hash_of_the_episodes_is_that_of_the_items(source, monkeypatch):
    learner = fsl.Learner(source.backbone, NearestCentroid(source.task))
    found = evaluation.evaluate(learner, source, "test", 30, seed=2).episode_set
    assert found == Vectors().hash_of_set("test", 30, 2)
    monkeypatch.setattr(Vectors, "fingerprint", None)  # kept: it is not computed again
    assert evaluation.evaluate(learner, source, "test", 30, seed=2).episode_set == found


def test_arrays_in_a_file_are_known_by_it(tmp_path, monkeypatch):
    """The set's hash is not made of every number that is drawn."""
    x = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)).numpy()
    y = np.arange(60) % 6
    np.savez(tmp_path / "a.npz", x=x, y=y, split=np.full(60, "test"))
    np.savez(tmp_path / "b.npz", x=x + 1, y=y, split=np.full(60, "test"))
    shape = {"n_way": 4, "n_shot": 3, "n_query": 5}

    def found(file, seed=0, episodes=30):
        source = Arrays(tmp_path / file, **shape)
        learner = fsl.Learner(nn.Identity(), NearestCentroid(source.task))
        return evaluation.evaluate(learner, source, "test", episodes, seed=seed)

    monkeypatch.setattr(fsl.EpisodeSource, "fingerprint", None)
    sets = [found("a.npz"), found("b.npz"), found("a.npz", seed=1), found("a.npz", episodes=31)]
    assert len({one.episode_set for one in sets}) == 4
    assert found("a.npz").episode_set == sets[0].episode_set


def test_arrays_in_memory_are_known_by_their_numbers():
    x, y = torch.randn(180, 7, generator=torch.Generator().manual_seed(0)), np.arange(180) % 6
    same = {"split_by": "items", "n_way": 4, "n_shot": 1, "n_query": 2}
    first, other = (ArrayEpisodes(items, y, **same) for items in (x, x + 1))
    assert first.known_set("test", 5, 0) is None
    assert first.hash_of_set("test", 5, 0) != other.hash_of_set("test", 5, 0)


class Masked(NearestCentroid):
    """Vectorizable as far as it says, but written for one task at a time."""

    def adapt(self, backbone, support):
        features = backbone(support.x)
        means = torch.stack([features[support.y == c].mean(0) for c in range(self.n_way)])
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


def test_an_adapter_for_one_task_at_a_time_is_judged_so(source):
    masked = fsl.Learner(source.backbone, Masked(source.task))
    usual = fsl.Learner(source.backbone, NearestCentroid(source.task))
    found, expected = (evaluation.evaluate(each, source, "test", 25) for each in (masked, usual))
    assert found.scores == expected.scores


class Noisy(NearestCentroid):
    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        noise = torch.randn(())
        return lambda x: predict(x) * noise.abs()


@pytest.mark.parametrize("each_step", [True, False])
def test_inner_steps_of_linear_layers(each_step, source, monkeypatch, float64):
    """Scores after each of them are those of one episode after another."""
    net = nn.Sequential(nn.Linear(9, 6), nn.Tanh())
    net.feature_dim = 6
    learner = fsl.Learner(net, GradientSteps(source.task, net)).double()
    doubles, options = Doubles(source), {"each_step": each_step}
    together = evaluation.evaluate(learner, doubles, "test", 25, **options)
    monkeypatch.setattr(evaluation, "judged_together", lambda *_: False)
    alone = evaluation.evaluate(learner, doubles, "test", 25, **options)
    assert (together.scores, together.after_steps) == (alone.scores, alone.after_steps)
    assert bool(alone.after_steps) == each_step
    torch.testing.assert_close(
        torch.tensor(together.losses), torch.tensor(alone.losses), rtol=0, atol=1e-9
    )


def test_adapters_that_draw_and_backbones_that_convolve_are_judged_one_by_one(source, monkeypatch):
    task = source.task
    dense, convolution = nn.Sequential(nn.Linear(7, 9), nn.Tanh()), nn.Conv2d(1, 9, 3)
    for backbone, together in ((nn.Identity(), True), (dense, True), (convolution, False)):
        assert judged_together(fsl.Learner(backbone, NearestCentroid(task))) == together
    large = fsl.Learner(nn.Linear(2**9, 2**9 + 1), NearestCentroid(task))
    assert not judged_together(large)  # 20 episodes with copies of it would not fit
    alone = NearestCentroid(task)
    alone.vectorizable = False
    assert not judged_together(fsl.Learner(nn.Identity(), alone))
    monkeypatch.setattr(evaluation, "judge_together", None)
    noisy = fsl.Learner(source.backbone, Noisy(task))
    first, second = (evaluation.evaluate(noisy, source, "test", 25).losses for _ in range(2))
    assert first == second

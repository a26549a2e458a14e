"""A mixture draws each episode whole from one of its sources, by weight and by index alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.glyphs import Glyphs
from fsl_core.builtin.mixture import Mixture
from fsl_core.builtin.mnist import Mnist
from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.data.groups import unbatch
from fsl_core.data.pool import LabelledPool
from fsl_core.data.pooled import PooledEpisodes
from fsl_core.testing import EpisodesContract

INDICES = range(60)


class Shades(PooledEpisodes):
    """Pictures of one shade each; every class has its own."""

    name = "shades"

    def __init__(self, first: int = 0, n_classes: int = 4, n_way=2, n_shot=1, **options):
        super().__init__(n_way, n_shot, 2, input_shape=(1, 2, 2), **options)
        self.first, self.n_classes = first, n_classes

    def load(self, split):
        base = self.first + {"train": 0, "validation": 60, "test": 120}[split]
        shades = torch.arange(base, base + 5 * self.n_classes, dtype=torch.uint8)
        images = shades.view(-1, 5, 1, 1, 1).expand(-1, -1, 1, 2, 2)
        return LabelledPool.from_classes((f"shade{i}", part) for i, part in enumerate(images))


class TestMixtureOfPools(EpisodesContract):
    def make(self):
        return Mixture([(Shades(), 1.0), (Shades(first=30, n_classes=5), 2.0)])


class TestMixtureOfRegressions(EpisodesContract):
    def make(self):
        return Mixture([(Sinusoid(), 2.0), (Sinusoid(), 1.0)])


class TestMixtureOfFiniteTasks(EpisodesContract):
    def make(self):
        return Mixture([(Sinusoid(tasks=3), 1.0), (Sinusoid(tasks=4), 1.0)])


class TestMixtureOfAMixture(EpisodesContract):
    def make(self):
        inner = Mixture([(Shades(), 1.0), (Shades(first=20), 1.0)])
        return Mixture([(inner, 1.0), (Shades(first=40), 1.0)])


def varying(sampling: str = "episode", first: int = 0) -> Shades:
    return Shades(first, n_way=(2, 4), n_shot=(1, 3), sampling=sampling)


class TestMixtureOfShapes(EpisodesContract):
    distinct_items = False

    def make(self):
        return Mixture([(varying(), 1.0), (varying(first=30), 1.0)])


class TestMixtureOfUnequalShots(TestMixtureOfShapes):
    def make(self):
        return Mixture([(varying("class"), 1.0), (varying("class", 30), 2.0)])


@pytest.mark.parametrize("sampling", ["episode", "class"])
def test_an_episode_of_a_varying_source_is_its_own(sampling: str):
    sources = [varying(sampling), varying(sampling, 30)]
    mixed = Mixture([(source, 1.0) for source in sources])
    groups = mixed.groups("train", INDICES, 3)
    keys = [(group.task, group.episodes.support.x.shape[1]) for group in groups]
    assert len(set(keys)) == len(keys), "episodes of one shape are one group, whatever the source"
    for i, place in enumerate(mixed.chosen("train", INDICES, 3)):
        ((shape, own),) = unbatch(sources[place].groups("train", [i], 3))
        found_shape, found = unbatch(groups)[i]
        assert found_shape == shape
        assert torch.equal(found.support.x, own.support.x)
        assert torch.equal(found.query.y, own.query.y)
        assert int(found.id) == i


@pytest.fixture
def mixed() -> Mixture:
    return Mixture([(Shades(), 1.0), (Shades(first=30, n_classes=5), 3.0)])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_episode_is_that_of_its_source(mixed: Mixture, split: fsl.Split):
    chosen = mixed.chosen(split, INDICES, 5)
    assert set(chosen.tolist()) == {0, 1}
    for index, place, episode in zip(
        INDICES, chosen, mixed.batch(split, INDICES, 5).unbatch(), strict=True
    ):
        (own,) = mixed.sources[place].batch(split, [index], 5).unbatch()
        tensors = zip((*episode.support, *episode.query), (*own.support, *own.query), strict=True)
        assert all(torch.equal(one, other) for one, other in tensors)
        assert int(episode.id) == index


def test_weights_are_shares_of_the_episodes(mixed: Mixture):
    chosen = mixed.chosen("train", range(20_000), 0)
    share = float(np.mean(chosen == 1))
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 20_000)
    whole = Mixture([(source, 10.0 * w) for source, w in zip(mixed.sources, (1, 3), strict=True)])
    assert np.array_equal(whole.chosen("train", range(200), 0), chosen[:200])


def test_which_source_depends_on_split_index_and_seed_alone(mixed: Mixture):
    drawn = mixed.chosen("train", INDICES, 0)
    assert np.array_equal(drawn[[7, 3]], mixed.chosen("train", [7, 3], 0))
    assert not np.array_equal(drawn, mixed.chosen("train", INDICES, 1))
    assert not np.array_equal(drawn, mixed.chosen("test", INDICES, 0))


def test_the_choice_says_nothing_about_what_is_drawn():
    """Of one source twice, both halves of the episodes have items of the same distribution."""
    mixed = Mixture([(Sinusoid(), 1.0), (Sinusoid(), 1.0)])
    chosen = mixed.chosen("train", range(4000), 0)
    x = mixed.batch("train", range(4000), 0).query.x.mean(dim=(1, 2)).numpy()
    means = [x[chosen == place].mean() for place in (0, 1)]
    assert abs(means[0] - means[1]) < 4 * x.std() * np.sqrt(2 / 2000)


def test_a_mixture_within_a_mixture_chooses_for_itself():
    inner = Mixture([(Shades(), 1.0), (Shades(first=20), 1.0)])
    outer = Mixture([(inner, 1.0), (Shades(first=40), 1.0)])
    batch = outer.batch("train", range(4000), 0)
    shades = (255 * batch.support.x[:, 0, 0, 0, 0]).round().int() // 20
    shares = torch.bincount(shades, minlength=3) / 4000
    expected = torch.tensor([0.25, 0.25, 0.5])
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()


def test_other_ways_shots_and_queries(mixed: Mixture):
    wanted = replace(mixed.task, n_way=3, n_shot=2, n_query=1, output_dim=3)
    batch = mixed.batch("test", INDICES, 0, wanted)
    assert batch.support.x.shape == (60, 6, 1, 2, 2)
    assert batch.query.y[0].tolist() == [0, 1, 2]


def test_sources_whose_shots_vary_alike():
    ranged = [Glyphs(n_way=2, n_shot=(1, 3), n_query=2, alphabet=a) for a in (0, 1)]
    mixed = Mixture([(source, 1.0) for source in ranged])
    chosen = mixed.chosen("test", range(12), 0)
    shots = set()
    for group in mixed.groups("test", range(12), 0):
        shots.add(group.task.n_shot)
        for place, episode in zip(group.places, group.episodes.unbatch(), strict=True):
            own = ranged[chosen[place]].batch("test", [place], 0, group.task)
            assert torch.equal(episode.support.x, own.support.x[0])
    assert shots == {1, 2, 3}


def test_training_tasks_of_finite_sources_are_numbered_one_after_the_other():
    mixed = Mixture([(Sinusoid(tasks=3), 1.0), (Sinusoid(tasks=4), 1.0)])
    assert mixed.tasks == 7
    ids, chosen = mixed.batch("train", INDICES, 0).id, mixed.chosen("train", INDICES, 0)
    assert set(ids[chosen == 0].tolist()) == {0, 1, 2}
    assert set(ids[chosen == 1].tolist()) == {3, 4, 5, 6}
    assert mixed.batch("test", INDICES, 0).id.tolist() == list(INDICES)
    assert Mixture([(Sinusoid(tasks=3), 1.0), (Sinusoid(), 1.0)]).tasks is None


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (Shades(n_way=3), r"sources\.1: 'shades' has n_way 3, and 'shades' has 2\. "),
        (Sinusoid(), r"sources\.1: 'sinusoid' has kind regression, and 'shades' has classif"),
        (Glyphs(n_way=2, n_query=2), r"'glyphs' has input_shape \(1, 28, 28\), and 'shades' has"),
    ],
)
def test_a_source_of_another_shape_is_refused_by_name(second: fsl.EpisodeSource, found: str):
    with pytest.raises(ValueError, match=found):
        Mixture([(Shades(), 1.0), (second, 1.0)])


def test_no_source():
    with pytest.raises(ValueError, match=r"^sources: none\. One source or more$"):
        Mixture([])


def test_faults_of_all_sources_are_told_together():
    mixed = Mixture([(Shades(n_classes=1), 1.0), (Glyphs(n_way=2, n_query=2), 1.0)][:1] * 2)
    with pytest.raises(fsl.DataError, match=r"^episodes 'shades': split 'test' has 1 classes"):
        mixed.check("test")
    mixed.check("test", replace(mixed.task, n_way=1))


def test_the_classes_of_every_source_are_told_apart():
    first, second = Shades(), Shades(first=30, n_classes=5)
    found = Mixture([(first, 1.0), (second, 1.0)]).inspect("train")
    assert list(found.classes)[:5] == [
        *(f"shades 0: shade{i}" for i in range(4)),
        "shades 1: shade0",
    ]
    assert len(found.classes) == 9
    others = [
        Mixture([(first, 1.0), (second, 2.0)]),
        Mixture([(second, 1.0), (first, 1.0)]),
        Mixture([(first, 1.0), (Shades(first=31, n_classes=5), 1.0)]),
    ]
    assert len({found.digest, *(each.inspect("train").digest for each in others)}) == 4
    assert found.digest == Mixture([(first, 7.0), (second, 7.0)]).inspect("train").digest
    assert Mixture([(Sinusoid(), 1.0)]).inspect("train").digest is None


def test_glyphs_and_digits_have_one_shape():
    """So have Omniglot's characters; and in all three ink is 1."""
    assert Mixture([(Glyphs(n_way=2), 1.0), (Mnist(), 1.0)]).task.input_shape == (1, 28, 28)


def test_pictures_are_read_as_by_the_first_source(mixed: Mixture, tmp_path: Path):
    mixed.sources[0].decode = lambda file: torch.full((1, 2, 2), 9)
    assert mixed.decode(tmp_path).unique().tolist() == [9]

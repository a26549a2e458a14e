"""Ways and shots that vary: shapes by (seed, split, index), groups, the rules that draw numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.data.groups import as_groups, ids_of, unbatch
from fsl_core.data.shapes import MOST_SUPPORT, meta_dataset_sizes
from tests.data.test_pool import identities, numbered

SIZES = {"train": [14] * 30, "validation": [6, 8, 20, 300, 7, 9, 40], "test": [14] * 8}


class Varying(fsl.PooledEpisodes):
    name = "varying"

    def __init__(self, n_way=(3, 6), n_shot=(1, 4), n_query=2, **options):
        super().__init__(n_way, n_shot, n_query, input_shape=(1, 2, 2), **options)

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        return numbered(SIZES[split])


def drawn(source: fsl.EpisodeSource, split: fsl.Split = "train", count: int = 60, seed: int = 0):
    return [episode for _, episode in unbatch(source.groups(split, range(count), seed))]


def shots_of(episode: fsl.Episode) -> list[int]:
    return episode.support.y.bincount().tolist()


def equal(a: fsl.Episode, b: fsl.Episode) -> bool:
    pairs = zip([*a.support, *a.query, a.id], [*b.support, *b.query, b.id], strict=True)
    return all(torch.equal(s, t) for s, t in pairs)


OPTIONS = [
    {},
    {"items_per_class": 9},
    {"sampling": "class"},
    {"sampling": "class", "items_per_class": 9},
    {"sampling": "meta-dataset"},
    {"episodes_per_draw": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_groups_hold_episodes_of_one_shape_in_known_places(options):
    source = Varying(**options)
    groups = source.groups("train", range(5, 45), 0)
    assert sorted(i for group in groups for i in group.places) == list(range(40))
    assert ids_of(groups).tolist() == list(range(5, 45))
    assert len(groups) > 1
    for task, episodes, places in groups:
        assert len(places) == len(episodes.id) == len(episodes.support.x)
        assert task.output_dim == task.n_way
        for episode in episodes.unbatch():
            assert episode.query.y.tolist() == np.repeat(range(task.n_way), task.n_query).tolist()
            assert episode.support.y.tolist() == sorted(episode.support.y.tolist())
            shots = shots_of(episode)
            assert len(shots) == task.n_way
            assert min(shots) >= 1
            if not task.varies:
                assert shots == [task.n_shot] * task.n_way
            items = identities(episode.support.x) + identities(episode.query.x)
            assert len(set(items)) == len(items)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_episode_and_its_shape_are_a_function_of_seed_split_and_index(options):
    alone = [unbatch(Varying(**options).groups("train", [i], 3))[0] for i in range(12)]
    together = unbatch(Varying(**options).groups("train", range(12), 3))
    backwards = unbatch(Varying(**options).groups("train", range(11, -1, -1), 3))[::-1]
    for one, other, third in zip(alone, together, backwards, strict=True):
        assert one[0] == other[0] == third[0]
        assert equal(one[1], other[1])
        assert equal(one[1], third[1])
    others = [
        Varying(**options).groups("train", range(12), 4),
        Varying(**options).groups("test", range(12), 3),
    ]
    for groups in others:
        shapes = [shots_of(episode) for _, episode in unbatch(groups)]
        assert shapes != [shots_of(episode) for _, episode in together]


def test_nothing_varies_in_one_group_with_the_bits_of_a_batch():
    source = Varying(n_way=3, n_shot=2)
    (group,) = source.groups("train", range(7), 5)
    assert group.task == source.task
    assert group.places == tuple(range(7))
    assert equal(group.episodes, source.batch("train", range(7), 5))
    assert equal(as_groups(group.episodes)[0].episodes, group.episodes)


def test_equal_shots_are_those_of_a_source_with_these_numbers():
    """An episode of a range is the one that a source with its numbers draws."""
    for task, episode in unbatch(Varying().groups("train", range(20), 1)):
        fixed = Varying(n_way=task.n_way, n_shot=task.n_shot)
        assert equal(episode, fixed.batch("train", [int(episode.id)], 1).unbatch()[0])


def test_ways_and_shots_are_uniform_in_their_ranges():
    episodes = drawn(Varying(), count=2400)
    ways = Counter(len(shots_of(episode)) for episode in episodes)
    shots = Counter(shots_of(episode)[0] for episode in episodes)
    assert set(ways) == {3, 4, 5, 6}
    assert set(shots) == {1, 2, 3, 4}
    for count in [*ways.values(), *shots.values()]:  # 600 expected, standard deviation 21
        assert abs(count - 600) < 90


def test_each_class_draws_its_shots():
    episodes = drawn(Varying(n_way=4, sampling="class"), count=900)
    shots = np.array([shots_of(episode) for episode in episodes])
    for column in shots.T:
        assert set(column) == {1, 2, 3, 4}
        assert abs(column.mean() - 2.5) < 0.15
    assert abs(np.corrcoef(shots.T)[np.triu_indices(4, 1)]).max() < 0.12


def test_queries_are_the_rest_of_the_items_per_class():
    for task, episode in unbatch(
        Varying(n_way=3, n_shot=[1, 9], items_per_class=12).groups("train", range(40), 0)
    ):
        assert task.n_shot + task.n_query == 12
        assert len(episode.query.x) == 3 * task.n_query
    source = Varying(n_way=3, n_shot=[1, 9], items_per_class=12)
    assert source.task.varies == fsl.Varies(n_shot=(1, 9), n_query=(3, 11))
    assert str(source.task) == "3-way 1..9-shot 3..11-query"


def test_episodes_share_a_draw():
    """R2-D2's protocol: the episodes of a meta-batch have as many shots."""
    groups = Varying(episodes_per_draw=4).groups("train", range(40), 0)
    shapes = [(task.n_way, task.n_shot) for task, _ in unbatch(groups)]
    assert all(len(set(shapes[i : i + 4])) == 1 for i in range(0, 40, 4))
    assert len(set(shapes)) > 5
    first = unbatch(groups)[:2]
    assert not equal(first[0][1], first[1][1])


def test_meta_dataset_by_its_formula():
    counts, task = (
        np.array([20, 7, 300, 9]),
        Varying(n_shot=(1, 100), n_query=10, sampling="meta-dataset").task,
    )
    rng = np.random.Generator(np.random.Philox(0))
    for _ in range(200):
        bits = rng.integers(0, 2**64, 5, dtype=np.uint64)
        beta, *alpha = (bits >> np.uint64(11)) / 2.0**53
        n_query = min(10, 7 // 2)
        left = [20 - n_query, 7 - n_query, 300 - n_query, 9 - n_query]
        size = sum(int(np.floor(beta * min(100, n) + 1)) for n in left)
        size = min(size, MOST_SUPPORT)
        weight = [2 ** (2 * a - 1) * n for a, n in zip(alpha, counts, strict=True)]
        wanted = [int(w / sum(weight) * (size - 4)) + 1 for w in weight]
        expected = tuple(min(w, n) for w, n in zip(wanted, left, strict=True))
        found = meta_dataset_sizes(bits, task, counts)
        assert found.n_query == n_query
        assert np.abs(np.subtract(found.shots, expected)).max() <= 1  # rounding of one product
        assert sum(a != b for a, b in zip(found.shots, expected, strict=True)) <= 1
        assert min(found.shots) >= 1


def test_meta_dataset_keeps_its_bounds():
    source = Varying(n_way=(5, 50), n_shot=(1, 100), n_query=10, sampling="meta-dataset")
    episodes = drawn(source, "validation", 200)
    ways = Counter(len(shots_of(episode)) for episode in episodes)
    assert set(ways) == {5, 6, 7}, "at most the classes that there are"
    for episode in episodes:
        shots = shots_of(episode)
        n_query = len(episode.query.x) // len(shots)
        classes = [c for c, _ in identities(episode.query.x)[::n_query]]
        sizes = [SIZES["validation"][c] for c in classes]
        assert n_query == min(10, min(sizes) // 2)
        assert all(shot <= size - n_query for shot, size in zip(shots, sizes, strict=True))
    assert len({tuple(shots_of(episode)) for episode in episodes}) > 150


def test_an_evaluation_fixes_what_varies():
    source = Varying(n_way=3, n_shot=(1, 9), items_per_class=12)
    one_shot = source.task.of(n_shot=1)
    for task, _ in unbatch(source.groups("test", range(5), 0, one_shot)):
        assert (task.n_shot, task.n_query) == (1, 11)
    asked = source.task.of(n_way=4, n_shot=5, n_query=6)
    assert not asked.varies
    (group,) = source.groups("test", range(5), 0, asked)
    assert group.episodes.support.x.shape[:2] == (5, 20)
    unequal = Varying(n_shot=(1, 100), n_query=5, sampling="meta-dataset")
    fixed = unequal.task.of(n_way=4, n_shot=5)
    assert {task.n_shot for task, _ in unbatch(unequal.groups("test", range(5), 0, fixed))} == {5}


def test_a_batch_of_several_shapes_is_refused():
    source = Varying()
    assert source.batch("train", [3], 0).id.tolist() == [3]
    with pytest.raises(
        fsl.ShapeError, match=r"episodes 'varying': \d+ shapes in one batch\. `groups`"
    ):
        source.batch("train", range(20), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_shot": 2, "sampling": "class"}, r"sampling: 'class' with n_shot: 2\. A range"),
        ({"n_shot": (2, 9), "sampling": "meta-dataset"}, r"'meta-dataset' with n_shot: \(2, 9\)"),
        (
            {"n_shot": (1, 9), "sampling": "meta-dataset", "items_per_class": 12},
            "with items_per_class",
        ),
        (
            {"n_shot": (1, 9), "items_per_class": 9},
            r"items_per_class: 9 with n_shot: 9.*At least 10",
        ),
        ({"n_shot": 5, "items_per_class": 5}, "items_per_class: 5 with n_shot: 5"),
    ],
)
def test_numbers_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        Varying(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_way": (3, 31)}, r"split 'train' has 30 classes\. n_way: 31"),
        ({"n_shot": (1, 13)}, r"has 14 items\. n_shot: 13 and n_query: 2 need at least 15"),
        (
            {"n_shot": (1, 9), "items_per_class": 15},
            r"has 14 items\. items_per_class: 15 and n_shot: 9 need at least 15",
        ),
        (
            {"n_way": (31, 50), "n_shot": (1, 100), "sampling": "meta-dataset"},
            "30 classes. n_way: 31",
        ),
    ],
)
def test_data_that_is_too_small_is_refused(options, message):
    with pytest.raises(fsl.DataError, match=message):
        Varying(**options).groups("train", [0], 0)


class Waves(fsl.EpisodeSource):
    """A source that draws one shape at a time, and says what varies."""

    name = "waves"
    task = fsl.TaskShape("regression", 1, 5, 4, (1,), 1, fsl.Varies(n_shot=(2, 5), n_query=(3, 4)))

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        assert not task.varies

        def part(n):
            return fsl.LabelledSet(torch.zeros(len(indices), n, 1), torch.zeros(len(indices), n, 1))

        return fsl.Episode(part(task.n_shot), part(task.n_query), torch.tensor([*indices]))


def test_any_source_varies_by_saying_so():
    tasks = unbatch(Waves().groups("train", range(100), 0))
    assert {(task.n_shot, task.n_query) for task, _ in tasks} == {
        (shot, query) for shot in (2, 3, 4, 5) for query in (3, 4)
    }
    assert all(len(e.support.x) == t.n_shot and len(e.query.x) == t.n_query for t, e in tasks)
    assert not any(task.varies for task, _ in tasks)


def test_shapes_in_words_and_least():
    task = fsl.TaskShape("classification", 20, 9, 10, (3,), 20, fsl.Varies((5, 20), (1, 9)))
    assert str(task) == "5..20-way 1..9-shot 10-query"
    assert task.least == fsl.TaskShape("classification", 5, 1, 10, (3,), 5)
    unequal = replace(task, varies=fsl.Varies((5, 20), (1, 9), None, class_shots=True))
    assert str(unequal).endswith("shots differ between classes")
    assert unequal.least.varies.class_shots
    assert unequal.of(n_shot=3) == replace(task, n_shot=3, varies=fsl.Varies((5, 20)))

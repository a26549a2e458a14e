"""What every source of episodes has to keep, whatever it draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.groups import ids_of, unbatch
from fsl_core.data.seeding import set_seed
from fsl_core.testing import checks
from fsl_core.text import first_line

SPLITS: tuple[fsl.Split, ...] = ("train", "validation", "test")
INDICES = (0, 1, 7)
MANY = 40
"""Episodes that are enough for a number that varies to show it."""


class EpisodesContract(checks.Contract):
    """Inherit as `class TestMine(EpisodesContract)` and write `make`.

    splits: those that have data, `train` among them.
    distinct_items: no item comes twice in an episode; False for items of few possible values.
    """

    foundations: ClassVar[tuple[str, ...]] = ("claims", "a_batch_has_its_shape")
    precision = torch.float32
    splits: ClassVar[tuple[fsl.Split, ...]] = SPLITS
    distinct_items: ClassVar[bool] = True

    def make(self) -> fsl.EpisodeSource:
        """A fresh source, with few ways, shots and queries."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> EpisodeSource"
        )

    def values_of(self, parameter: str) -> Sequence[Any]:
        return {"split": self.splits}[parameter]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks.parametrize(metafunc, {"split": self.splits})

    def test_claims(self) -> None:
        try:
            source = self.make()
        except (NotImplementedError, fsl.FslError):
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {first_line(error)}"
            raise AssertionError(
                f"make: raised {told}. A source, built from its options"
            ) from error
        assert isinstance(source, fsl.EpisodeSource), (
            f"make: {type(source).__name__}. A subclass of fsl_core.EpisodeSource"
        )
        name = getattr(source, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under `episodes.name`"
        )
        task = source.task
        assert isinstance(task, fsl.TaskShape), f"task: {type(task).__name__}. A TaskShape"
        if task.kind == "classification":
            found = f"task: {task.n_way} ways, predictions of {task.output_dim} numbers"
            assert task.output_dim == task.n_way >= 2, (
                f"{found}. Two ways or more, and one logit for each"
            )
        else:
            assert task.n_way == 1, (
                f"task: regression with n_way {task.n_way}. 1: there are no classes"
            )
        assert source.tasks is None or source.tasks > 0, (
            f"tasks: {source.tasks!r}. The number of training tasks, or None"
        )

    def test_a_batch_has_its_shape(self, split: fsl.Split) -> None:
        source = self.make()
        source.check(split)
        for group in source.groups(split, INDICES, 0):
            _check_group(group, source, split)

    def test_items_of_an_episode_differ(self, split: fsl.Split) -> None:
        if not self.distinct_items:
            pytest.skip("not claimed: distinct_items")
        for _, episode in unbatch(self.make().groups(split, INDICES, 0)):
            items = torch.cat([episode.support.x, episode.query.x])
            items = items.reshape(len(items), -1)
            repeated = len(items) - len(items.unique(dim=0))
            assert not repeated, (
                f"{split}: {repeated} of {len(items)} items of an episode come twice. "
                "Queries that are not in the support set: items drawn without replacement; "
                "or distinct_items = False on the test class"
            )

    def test_an_episode_is_a_function_of_split_index_and_seed(self, split: fsl.Split) -> None:
        source = self.make()
        together = unbatch(source.groups(split, INDICES, 3))
        of_torch = torch.get_rng_state()
        set_seed(1)
        np.random.seed(1)
        before = torch.get_rng_state(), _numpy_state()
        again = unbatch(self.make().groups(split, INDICES[::-1], 3))[::-1]
        after = torch.get_rng_state(), _numpy_state()
        torch.set_rng_state(of_torch)
        for i, ((shape, first), (other, second)) in enumerate(zip(together, again, strict=True)):
            same = shape == other and _same(first, second)
            assert same, (
                f"{split}: episode {INDICES[i]}, or its shape, depends on the batch it is drawn "
                "with, on an earlier call or on global random numbers. A function of split, index "
                "and seed alone: fsl.draw_bits gives numbers to draw by"
            )
        untouched = torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1])
        assert untouched, (
            f"{split}: drawing moves a global random state. fsl.draw_bits, or a generator of its "
            "own"
        )

    def test_episodes_differ(self) -> None:
        source = self.make()
        first, other = (episode for _, episode in unbatch(source.groups("train", (0, 1), 0)))
        assert not torch.equal(first.query.x, other.query.x), (
            "episodes 0 and 1 are the same. Items that depend on the index"
        )
        ((_, seeded),) = unbatch(source.groups("train", (0,), 1))
        assert not torch.equal(first.query.x, seeded.query.x), (
            "episodes under the seeds 0 and 1 are the same. Items that depend on the seed"
        )
        for split in self.splits[1:]:
            ((_, there),) = unbatch(source.groups(split, (0,), 0))
            assert not torch.equal(first.query.x, there.query.x), (
                f"train and {split} give the same episode. Tasks of its own"
            )

    def test_splits_share_no_item(self) -> None:
        if not self.distinct_items:
            pytest.skip("not claimed: distinct_items")
        source, indices = self.make(), range(20)
        drawn = {}
        for split in self.splits:
            episodes = [group.episodes for group in source.groups(split, indices, 0)]
            items = [part.x.flatten(0, 1) for e in episodes for part in (e.support, e.query)]
            both = torch.cat(items)
            drawn[split] = {row.tobytes() for row in both.reshape(len(both), -1).cpu().numpy()}
        for split in self.splits[1:]:
            shared = len(drawn["train"] & drawn[split])
            assert not shared, (
                f"{split}: {shared} of its items come in train too. Classes, or at least items, "
                "of its own"
            )

    def test_other_ways_and_shots(self, split: fsl.Split) -> None:
        source = self.make()
        task = replace(source.task.least, varies=fsl.Varies())
        wanted = [replace(task, n_shot=task.n_shot + 1), replace(task, n_query=task.n_query + 1)]
        if task.kind == "classification":
            wanted.append(replace(task, n_way=task.n_way + 1, output_dim=task.n_way + 1))
        refused = []
        for shape in wanted:
            try:
                source.check(split, shape)
                batch = source.batch(split, INDICES, 0, shape)
            except fsl.DataError as error:
                refused.append(str(error))
                continue
            sizes = f"{shape.n_way} ways, {shape.n_shot} shots, {shape.n_query} queries"
            _check_batch(batch, source, shape, len(INDICES), f"{split}, {sizes}")
        for group in source.groups(split, INDICES, 0):
            _check_group(group, source, f"{split}, after other shapes")
        if len(refused) == len(wanted):
            pytest.skip(f"not claimed: {refused[0]}")

    def test_what_varies(self, split: fsl.Split) -> None:
        source = self.make()
        varies = source.task.varies
        if not varies:
            pytest.skip("not claimed: task.varies")
        groups = source.groups(split, range(MANY), 0)
        places = sorted(place for group in groups for place in group.places)
        assert places == [*range(MANY)], (
            f"groups: {split}, {len(places)} places for {MANY} episodes. Each place once"
        )
        for group in groups:
            _check_group(group, source, split)
        for name in ("n_way", "n_shot", "n_query"):
            found = {getattr(group.task, name) for group in groups}
            if getattr(varies, name) is None or (name == "n_shot" and varies.class_shots):
                continue
            assert len(found) > 1, (
                f"groups: {split}, {MANY} episodes with {name} {found.pop()}, of which task.varies "
                f"says {getattr(varies, name)}. Numbers that differ, or no such claim"
            )

    def test_ids(self, split: fsl.Split) -> None:
        source = self.make()
        tasks = source.tasks if split == "train" else None
        indices = [*INDICES] if tasks is None else [*INDICES, tasks, tasks + 1]
        ids = ids_of(source.groups(split, indices, 0))
        assert ids.shape == (len(indices),), (
            f"id: shape {tuple(ids.shape)} for {len(indices)} episodes. One each"
        )
        assert ids.dtype == torch.int64, f"id: {ids.dtype}. torch.int64"
        if tasks is not None:
            inside = bool(((ids >= 0) & (ids < tasks)).all())
            assert inside, f"id: {ids.tolist()} of {tasks} training tasks. Numbers 0 .. {tasks - 1}"

    def test_fingerprint_tells_episodes_apart(self) -> None:
        source = self.make()
        first, again, other = (self.make().batch("train", (i,), 0) for i in (0, 0, 1))
        assert source.fingerprint(first) == source.fingerprint(again), (
            "fingerprint: two for equal episodes. A digest of them"
        )
        assert source.fingerprint(first) != source.fingerprint(other), (
            "fingerprint: one for two episodes. A digest of all of them"
        )

    def test_what_a_split_is_made_of(self, split: fsl.Split) -> None:
        first, again = (self.make().inspect(split) for _ in range(2))
        assert first.digest == again.digest, (
            f"inspect: {split} has the digests {first.digest} and {again.digest} in equal sources. "
            "A hash of its items, by which a run knows whether its data is still the same"
        )
        empty = [name for name, count in first.classes.items() if count < 1]
        assert not empty, (
            f"inspect: {split}, classes without items: {', '.join(empty[:3])}. "
            "The number of items of each class"
        )

    def test_device(self, device: str) -> None:
        expected = unbatch(self.make().groups("train", INDICES, 0))
        with checks.on_device(device):
            found = unbatch(self.make().to(device).groups("train", INDICES, 0))
        for tensor in (t for _, e in found for t in (*e.support, *e.query)):
            assert tensor.device.type == device, (
                f"device {device}: a tensor on {tensor.device}. All of an episode on the device of "
                "to()"
            )
        on_cpu = [checks.cast(episode, "cpu") for _, episode in found]
        assert all(_same(a, b) for a, (_, b) in zip(on_cpu, expected, strict=True)), (
            f"device {device}: episodes other than on the CPU. The same tensors on every device: "
            "draw on the CPU, then move"
        )


def _numpy_state() -> np.ndarray:
    """The numbers that NumPy's global generator draws from."""
    return np.random.get_state(legacy=False)["state"]["key"].copy()


def _same(first: fsl.Episode, second: fsl.Episode) -> bool:
    pairs = zip((*first.support, *first.query), (*second.support, *second.query), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _check_group(group: fsl.Group, source: fsl.EpisodeSource, where: str) -> None:
    """A group is of one shape, which the source's task allows."""
    shape, task = group.task, source.task
    assert shape is not None, f"{where}: a group without a task. Its shape, as a TaskShape"
    for name in ("n_way", "n_shot", "n_query"):
        number, most = getattr(shape, name), getattr(task, name)
        low, high = getattr(task.varies, name) or (most, most)
        assert low <= number <= high, (
            f"{where}: episodes of {shape}, where task is {task}. {name} from {low} to {high}"
        )
    unequal = shape.varies.class_shots
    assert not replace(shape.varies, class_shots=False), f"{where}: a group of {shape}. One shape"
    assert task.varies.class_shots or not unequal, (
        f"{where}: a group of {shape}, where task is {task}. As many shots of each class"
    )
    _check_batch(group.episodes, source, shape, len(group.places), where)


def _check_batch(
    batch: fsl.Episode, source: fsl.EpisodeSource, task: fsl.TaskShape, count: int, where: str
) -> None:
    for name, part, per_class in (
        ("support", batch.support, task.n_shot),
        ("query", batch.query, task.n_query),
    ):
        expected = (count, task.n_way * per_class, *task.input_shape)
        unequal = task.varies.class_shots and name == "support"
        if unequal:  # the labels say how many of each class
            expected = (count, *part.x.shape[1:2], *task.input_shape)
        assert part.x.shape == expected, (
            f"{where}: {name}.x of shape {tuple(part.x.shape)}. Expected {expected}"
        )
        _check_items(part.x, source.vocabulary, f"{where}: {name}.x")
        if task.kind == "regression":
            wanted = (count, per_class, task.output_dim)
            assert part.y.shape == wanted, (
                f"{where}: {name}.y of shape {tuple(part.y.shape)}. Expected {wanted}"
            )
            assert part.y.dtype == part.x.dtype, (
                f"{where}: {name}.y of {part.y.dtype}. That of the items, {part.x.dtype}"
            )
            assert part.y.isfinite().all(), f"{where}: {name}.y is not finite. Finite values"
        elif unequal:
            _check_unequal(part.y, task.n_way, count, f"{where}: {name}.y")
        else:
            _check_labels(part.y, task.n_way, per_class, count, f"{where}: {name}.y")


def _check_items(x: Tensor, vocabulary: int | None, where: str) -> None:
    if vocabulary is None:
        assert x.is_floating_point(), (
            f"{where} of {x.dtype}. torch.float32; or int64 token ids, and the attribute "
            "`vocabulary`, which they are below"
        )
        assert x.isfinite().all(), f"{where} is not finite. Finite items"
    else:
        assert x.dtype == torch.int64, f"{where} of {x.dtype}. torch.int64: there is a vocabulary"
        assert ((x >= 0) & (x < vocabulary)).all(), (
            f"{where}: ids {int(x.min())} .. {int(x.max())} with a vocabulary of {vocabulary}. "
            f"0 .. {vocabulary - 1}"
        )


def _check_unequal(y: Tensor, n_way: int, count: int, where: str) -> None:
    assert y.dtype == torch.int64, f"{where}: {y.dtype}. torch.int64, the index of a class"
    assert len(y) == count, f"{where}: {len(y)} rows for {count} episodes. One each"
    for row in y.tolist():
        assert row == sorted(row), f"{where}: {row}. Rows sorted by class"
        assert set(row) == set(range(n_way)), (
            f"{where}: {row}. One or more of each of the classes 0 .. {n_way - 1}"
        )


def _check_labels(y: Tensor, n_way: int, per_class: int, count: int, where: str) -> None:
    rows: Sequence[int] = torch.arange(n_way).repeat_interleave(per_class).tolist()
    assert y.shape == (count, len(rows)), (
        f"{where}: shape {tuple(y.shape)}. Expected {(count, len(rows))}, a class an item"
    )
    assert y.dtype == torch.int64, f"{where}: {y.dtype}. torch.int64, the index of a class"
    assert all(row == rows for row in y.tolist()), (
        f"{where}: {y[0].tolist()}. Rows sorted by class, {per_class} of each of the classes "
        f"0 .. {n_way - 1}"
    )

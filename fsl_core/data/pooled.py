"""Episodes drawn from labelled pools by a few array operations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fsl_core.data.augment import AUGMENTATIONS, Augmentation, Change
from fsl_core.data.cache import content_key
from fsl_core.data.draws import draw_bits, to_distinct
from fsl_core.data.groups import Group, by_key
from fsl_core.data.pool import LabelledPool
from fsl_core.data.shapes import (
    Sampling,
    Sizes,
    meta_dataset_sizes,
    most,
    shape_bits,
    uniform_shots,
    varying,
    ways_of,
)
from fsl_core.data.source import EpisodeSource, Split, SplitContents
from fsl_core.episode import Episode, LabelledSet, Range, TaskShape, Varies
from fsl_core.errors import DataError, ShapeError
from fsl_core.text import printable


class PooledEpisodes(EpisodeSource):
    """Classification episodes drawn from one labelled pool for each split.

    Subclasses set `name` and write `load`. An episode has n_way different classes in random order,
    which gives them the labels 0 .. n_way - 1, and n_shot + n_query different items of each class.
    Items come as their pool decodes them: pictures as float32 in 0 .. 1. With more queries the
    support set stays the same.
    """

    def __init__(
        self,
        n_way: int | Range,
        n_shot: int | Range,
        n_query: int,
        *,
        input_shape: tuple[int, ...],
        augment: Augmentation = "none",
        items_per_class: int | None = None,
        sampling: Sampling = "episode",
        episodes_per_draw: int = 1,
    ):
        """A source whose pools are loaded when they are first needed.

        n_way, n_shot: (least, most) for numbers that each episode draws.
        input_shape: of an item that is drawn, such as (channels, height, width).
        augment:     what is done to each image of a training episode, support and query: a function
            of seed, index and the image's place in the episode.
        items_per_class, sampling, episodes_per_draw: how numbers are drawn, as the options of
            these names in `fsl_core.data` say.
        Raises ValueError for numbers that do not go together.
        """
        if augment != "none" and len(input_shape) != 3:
            raise ValueError(f"augment: {augment!r} for items of shape {input_shape}. Pictures")
        self._augment = AUGMENTATIONS[augment]
        self._items, self._sampling, self._per_draw = items_per_class, sampling, episodes_per_draw
        n_query, varies = varying(n_way, n_shot, n_query, items_per_class, sampling)
        ways = most(n_way)
        self.task = TaskShape(
            "classification", ways, most(n_shot), n_query, input_shape, ways, varies
        )
        self._device = torch.device("cpu")
        self._pools: dict[Split, LabelledPool] = {}

    @property
    def augments(self) -> bool:
        """Whether training items are changed at random."""
        return self._augment is not None

    def draw_sizes_as(self, other: PooledEpisodes) -> None:
        """Draw numbers of ways, shots and queries by the options of another source."""
        self._items, self._sampling = other._items, other._sampling
        self._per_draw = other._per_draw

    def set_key(self, split: Split, episodes: int, seed: int, task: TaskShape) -> str:
        """A digest of the pool and the numbers that decide the first frozen episodes of a split."""
        sizes = f"{self._items} {self._sampling} {self._per_draw}"
        shape = f"{task.n_way} {task.n_shot} {task.n_query} {task.varies} {sizes}"
        digest = self.pool(split).digest
        return content_key("episode set", digest, split, episodes, seed, shape)

    @abstractmethod
    def load(self, split: Split) -> LabelledPool:
        """Read the items of a split; called once, when the split is first needed.

        Raises DataError if there are none.
        """

    def pool(self, split: Split) -> LabelledPool:
        """The items of a split, on the device of `to`. DataError for files that cannot be read."""
        if split not in self._pools:
            try:
                pool = self.load(split)
                _refuse_other_shape(f"episodes {self.name!r}: split {split!r}", pool, self.task)
                self._pools[split] = pool.to(self._device)
            except OSError as error:  # no right to read, gone since it was listed, a bad disk
                what = f"{printable(error.filename)}: {error.strerror}" if error.filename else error
                raise DataError(
                    f"episodes {self.name!r}: {what}. Files and folders that can be read"
                ) from error
        return self._pools[split]

    def to(self, device: torch.device | str) -> PooledEpisodes:
        self._device = torch.device(device)
        self._pools = {split: pool.to(self._device) for split, pool in self._pools.items()}
        return self

    def check(self, split: Split, task: TaskShape | None = None) -> None:
        task, pool = task or self.task, self.pool(split)
        where, n_way = f"episodes {self.name!r}: split {split!r}", self.ways_needed(task)
        if len(pool.classes) < n_way:
            raise DataError(
                f"{where} has {len(pool.classes)} classes. n_way: {n_way} needs at least {n_way}"
            )
        found, needed = min(pool.counts), self.items_needed(task)
        if found < needed:
            least = pool.classes[pool.counts.index(found)]
            need = f"{self._sizes_told(task)} need at least {needed}"
            raise DataError(f"{where}, class {least!r} has {found} items. {need}")

    def ways_needed(self, task: TaskShape) -> int:
        """Classes that a split must have, so that every episode of this shape can be drawn."""
        if self._by_meta_dataset(task) and task.varies.n_way:
            return task.varies.n_way[0]  # the most is the number of classes, if that is less
        return task.n_way

    def items_needed(self, task: TaskShape) -> int:
        if self._by_meta_dataset(task):
            return 2 if task.varies.n_query else task.n_query + 1
        if self._items is not None and task.varies.n_query:
            return max(self._items, task.n_shot + 1)
        return super().items_needed(task)

    def _by_meta_dataset(self, task: TaskShape) -> bool:
        return self._sampling == "meta-dataset" and task.varies.class_shots

    def _sizes_told(self, task: TaskShape) -> str:
        if self._by_meta_dataset(task):
            return "a support and a query item"
        if self._items is not None and task.varies.n_query:
            return f"items_per_class: {self._items} and n_shot: {task.n_shot}"
        return f"n_shot: {task.n_shot} and n_query: {task.n_query}"

    def inspect(self, split: Split, digest: bool = True) -> SplitContents:
        pool = self.pool(split)
        classes = dict(zip(pool.classes, pool.counts, strict=True))
        return SplitContents(classes, pool.digest if digest else None)

    def batch(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> Episode:
        task = task or self.task
        if task.varies:
            groups = self.groups(split, indices, seed, task)
            if len(groups) > 1:
                raise ShapeError(
                    f"episodes {self.name!r}: {len(groups)} shapes in one batch. `groups`, which "
                    "gives those of one shape together"
                )
            return groups[0].episodes
        self.check(split, task)
        shots = np.full((len(indices), task.n_way), task.n_shot)
        return self.episodes_of(split, indices, seed, shots, task.n_query)

    def groups(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> Sequence[Group]:
        task = task or self.task
        if not task.varies:
            return super().groups(split, indices, seed, task)
        self.check(split, task)
        sizes = self._episode_sizes(split, indices, seed, task)
        found = []
        for (n_way, _, n_query), places in by_key(size.key for size in sizes).items():
            shots = np.array([sizes[i].shots for i in places])
            n_shot = None if task.varies.class_shots else int(shots[0, 0])
            shape = task.of(n_way, n_shot, n_query)
            shape = replace(shape, varies=Varies(class_shots=task.varies.class_shots))
            chosen = [indices[i] for i in places]
            episodes = self.episodes_of(split, chosen, seed, shots, n_query)
            found.append(Group(shape, episodes, places))
        return found

    def classes_of(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> list[tuple[str, ...]]:
        task, names = task or self.task, self.pool(split).classes
        # Of an episode with fewer ways, these are the first: a longer draw starts the same.
        drawn = _draw_classes(draw_bits(seed, split, indices, task.n_way), len(names)).tolist()
        _, ways = self._ways(split, indices, seed, task)
        return [tuple(names[c] for c in own[:n]) for own, n in zip(drawn, ways, strict=True)]

    def _ways(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape
    ) -> tuple[np.ndarray, list[int]]:
        """The random bits for the shape of each episode, and its number of classes."""
        bits = shape_bits(seed, split, indices, self._per_draw, task.n_way)
        n_classes = len(self.pool(split).classes)
        return bits, [ways_of(own, task, n_classes) for own in bits]

    def _episode_sizes(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape
    ) -> list[Sizes]:
        """Ways, shots and queries of each episode, a function of (seed, split, index)."""
        counts = np.array(self.pool(split).counts)
        bits, ways = self._ways(split, indices, seed, task)
        if not self._by_meta_dataset(task):
            shots = [uniform_shots(own, task, n) for own, n in zip(bits, ways, strict=True)]
            return [Sizes(own, self._queries(task, max(own))) for own in shots]
        sizes = []
        for index, own, n_way in zip(indices, bits, ways, strict=True):
            (classes,) = _draw_classes(draw_bits(seed, split, [index], n_way), len(counts))
            sizes.append(meta_dataset_sizes(own[1:], task, counts[classes]))
        return sizes

    def _queries(self, task: TaskShape, n_shot: int) -> int:
        if self._items is None or not task.varies.n_query:
            return task.n_query
        return max(self._items - n_shot, 1)

    def episodes_of(
        self, split: Split, indices: Sequence[int], seed: int, shots: np.ndarray, n_query: int
    ) -> Episode:
        """Episodes of one shape, as all that this source gives are drawn.

        A source that changes what was drawn overrides this method and calls it.

        shots: (len(indices), n_way), of each class.
        """
        pool, n_way, per_class = self.pool(split), shots.shape[1], int(shots.max()) + n_query
        rows = _draw_rows(pool, draw_bits(seed, split, indices, n_way * (1 + per_class)), n_way)
        ids = torch.tensor(list(indices), dtype=torch.int64, device=self._device)
        change = self._augment if split == "train" else None
        bits = _augmentation_bits(seed, split, indices, n_way, per_class) if change else rows
        place, ends = np.arange(per_class), shots[..., None]
        in_support = place < ends
        in_query = ~in_support & (place < ends + n_query)
        support, query = (
            _labelled_set(pool, rows, part, change, bits, self._device)
            for part in (in_support, in_query)
        )
        return Episode(support, query, ids)


def _draw_classes(bits: np.ndarray, classes: int) -> np.ndarray:
    """(meta_batch_size, n_way) of this many classes, in random order."""
    return to_distinct(bits, np.full(len(bits), classes))


def _draw_rows(pool: LabelledPool, bits: np.ndarray, n_way: int) -> np.ndarray:
    """(meta_batch_size, n_way, per_class) places in the pool, of each class different ones.

    A class that has fewer items than per_class gives as many; what follows means nothing.

    bits: (meta_batch_size, n_way * (1 + per_class)): first those for the classes, then those
        for one item of each class, for the next item of each class, and so on. In this order more
        queries add bits at the end, and leave the support set as it is.
    """
    n, counts = len(bits), np.array(pool.counts)
    classes = _draw_classes(bits[:, :n_way], len(counts))
    of_class = bits[:, n_way:].reshape(n, -1, n_way).transpose(0, 2, 1)
    items = to_distinct(of_class.reshape(n * n_way, -1), counts[classes].reshape(-1))
    return pool.offsets[classes][..., None] + items.reshape(n, n_way, -1)


def _augmentation_bits(
    seed: int, split: str, indices: Sequence[int], n_way: int, per_class: int
) -> np.ndarray:
    """(meta_batch_size, n_way, per_class, 3) bits for the changes of each image.

    Those of the support set do not depend on the number of queries.
    """
    bits = draw_bits(seed, f"{split}/augment", indices, per_class * n_way * 3)
    return bits.reshape(-1, per_class, n_way, 3).swapaxes(1, 2)


def _labelled_set(
    pool: LabelledPool,
    rows: np.ndarray,
    part: np.ndarray,
    change: Change | None,
    bits: np.ndarray,
    device: torch.device,
) -> LabelledSet:
    """The items at these places, changed by their bits, with the labels of their places.

    rows: (meta_batch_size, n_way, per_class).
    part: of the same shape, which of them; as many in each episode.
    """
    n, n_way, _ = rows.shape
    labels = np.broadcast_to(np.arange(n_way, dtype=np.int64)[:, None], rows.shape)
    y = torch.from_numpy(labels[part].reshape(n, -1)).to(device)
    items = pool.take(rows[part]).to(device)
    if change:
        items = change(items, bits[part])
    return LabelledSet(pool.decode(items).unflatten(0, y.shape), y)


def _refuse_other_shape(where: str, pool: LabelledPool, task: TaskShape) -> None:
    if len(pool):
        found = tuple(pool.inputs(np.zeros(1, np.int64)).shape[1:])
        if found != tuple(task.input_shape):
            raise ShapeError(f"{where}: items of shape {found}. {task.input_shape}, as its task")

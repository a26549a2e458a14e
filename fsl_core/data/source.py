"""The source of episodes: the contract that every kind of episodes fulfils."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsl_core.config.options import Sources as Sources
from fsl_core.data.draws import draw_bits, to_between
from fsl_core.data.folders import PassedOver
from fsl_core.data.groups import Group, by_key
from fsl_core.data.vision import decode_image
from fsl_core.data.work import each
from fsl_core.episode import Episode, LabelledSet, TaskShape
from fsl_core.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DRAWN_TOGETHER = 20
"""Frozen episodes that are drawn at a time; the hash of a set of them depends on it."""


@dataclass(frozen=True)
class SplitContents:
    """What a split is made of, for `fsl check --data` and for a run's record of its data.

    classes: items of each class, by its name; empty if there is no pool of items to draw from.
    digest:  changes whenever an episode of the split could change; None if nothing is read, or
        nobody asked for it.
    files:   the file of each item of a class, if it was read from files of the user.
    passed_over: what lies beside these files and is not read.
    """

    classes: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    passed_over: Sequence[PassedOver] = ()


class EpisodeSource(ABC):
    """Draws episodes.

    Episode `index` of `split` under `seed` is a pure function of the three, without a global random
    state.

    name:  what recipes write under `episodes.name`.
    task:  the shape of an episode as the recipe asks for it; `task.varies` says what differs from
        one episode to the next.
    tasks: number of different tasks in the train split if it is finite; `Episode.id` is then
        0 .. tasks - 1 in that split.
    vocabulary: if items are token ids (int64), the number that they are below; None: items are
        floats.
    """

    name: ClassVar[str]
    task: TaskShape
    tasks: int | None = None
    vocabulary: int | None = None
    _moved_to: torch.device | None = None

    @abstractmethod
    def batch(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> Episode:
        """The episodes of these indices, with a leading (len(indices),) axis.

        task: another shape than `self.task`, for an evaluation with more shots, queries or ways
            than training. A source whose episodes vary is asked for one shape at a time.
        Raises DataError if the split has too few classes, or a class too few items.
        """

    def groups(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> Sequence[Group]:
        """The episodes of these indices, those of one shape together.

        Default: if nothing varies, one group, which `batch` draws. Else the numbers that vary are
        uniform in their ranges, a function of seed, split and index, and `batch` draws the episodes
        of each shape. A source that draws shapes by another rule overrides this method.
        """
        task = task or self.task
        if not task.varies:
            batch = self._moved(self.batch(split, indices, seed, task))
            return [Group(task, batch, tuple(range(len(indices))))]
        shapes = self._shapes(split, indices, seed, task)
        return [
            Group(
                shape,
                self._moved(self.batch(split, [indices[i] for i in places], seed, shape)),
                places,
            )
            for shape, places in by_key(shapes).items()
        ]

    def classes_of(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape | None = None
    ) -> list[tuple[str, ...]] | None:
        """The names of the classes of these episodes, each in the order of its labels.

        An evaluation then tells what was taken for what. None, the default: they have no names. A
        source that draws classes by a rule of its own, and names them, overrides this by that rule.
        """
        return None

    def _shapes(
        self, split: Split, indices: Sequence[int], seed: int, task: TaskShape
    ) -> list[TaskShape]:
        """The shape of each episode, its numbers uniform in their ranges."""
        ranges = (task.varies.n_way, task.varies.n_shot, task.varies.n_query)
        bits = draw_bits(seed, f"{split}/shape", indices, len(ranges))
        return [
            task.of(*(r and to_between(bit, r) for bit, r in zip(row, ranges, strict=True)))
            for row in bits
        ]

    def to(self, device: torch.device | str) -> EpisodeSource:
        """Give episodes on this device from now on; returns self.

        Default: `groups` moves them. A source that keeps on the device what it draws from overrides
        this method.
        """
        self._moved_to = torch.device(device)
        return self

    def _moved(self, episodes: Episode) -> Episode:
        if self._moved_to is None:
            return episodes
        (support_x, support_y), (query_x, query_y), ids = episodes
        support = LabelledSet(support_x.to(self._moved_to), support_y.to(self._moved_to))
        query = LabelledSet(query_x.to(self._moved_to), query_y.to(self._moved_to))
        return Episode(support, query, ids.to(self._moved_to))

    def check(self, split: Split, task: TaskShape | None = None) -> None:
        """Raise DataError if the split cannot give such episodes.

        Called for every split in use before anything is trained.
        """

    def items_needed(self, task: TaskShape) -> int:
        """Items that a class must have, so that every episode of this shape can be drawn."""
        return task.n_shot + task.n_query

    def check_splits(self, wanted: Mapping[Split, TaskShape]) -> None:
        """Check the splits in use, each for its shape. Raises one DataError with all faults."""
        faults = []
        for split, task in wanted.items():
            try:
                self.check(split, task)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(dict.fromkeys(faults)))

    def inspect(self, split: Split, digest: bool = True) -> SplitContents:
        """What the split is made of. A source that reads data overrides this; default: unknown.

        digest: False leaves it out, when it is enough to list the items without reading them.
        """
        return SplitContents()

    @property
    def item_task(self) -> TaskShape:
        """`task` with the shape of what `decode` gives, which a frozen backbone makes features of.

        For all other sources that is `task` itself.
        """
        return self.task

    def decode(self, file: Path) -> Tensor:
        """A picture file of a user as an item of this source: (channels, size, size) uint8.

        `fsl predict` reads pictures by it. A source that reads its pictures by another rule
        overrides it with that rule. Raises DataError, which names the file, if it cannot be read.
        """
        channels, size, _ = self.task.input_shape
        return decode_image(file, size, "gray" if channels == 1 else "rgb")

    def known_set(
        self, split: Split, episodes: int, seed: int, task: TaskShape | None = None
    ) -> str | None:
        """The hash of the first frozen episodes of a split, if it is known without drawing them.

        None, the default: whoever draws them computes it, as `hash_of_set` does.
        """
        return None

    def hash_of_set(
        self, split: Split, episodes: int, seed: int, task: TaskShape | None = None
    ) -> str:
        """The hash of the first frozen episodes of a split: of their tensors, unless known."""
        known = self.known_set(split, episodes, seed, task)
        if known is not None:
            return known
        digest = hashlib.blake2b(digest_size=16)
        for start in each(range(0, episodes, DRAWN_TOGETHER), "drawing episodes"):
            indices = range(start, min(start + DRAWN_TOGETHER, episodes))
            for group in self.groups(split, indices, seed, task):
                digest.update(self.fingerprint(group.episodes))
        return digest.hexdigest()

    def fingerprint(self, episodes: Episode) -> bytes:
        """A digest of a batch of episodes as `batch` returned it: equal digests, equal tensors."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (*episodes.support, *episodes.query):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()

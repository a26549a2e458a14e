"""Each episode from one of several sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data.source import Sources


class Mixture(fsl.EpisodeSource):
    """Each episode is drawn from one of several sources, chosen by their weights.

    Which one is a function of (seed, split, index), and so is the episode: index i of a source that
    is chosen is that source's own episode i. Validation and test episodes are mixed alike. All
    sources have one kind and shape of task; how many classes each has does not matter. Weights are
    shares of episodes: 2 and 1 give two thirds and one third. `fsl predict` reads pictures as the
    first source does. If every source has a finite set of training tasks, so has the mixture.
    """

    name = "mixture"

    def __init__(
        self,
        sources: Annotated[
            list[tuple[fsl.EpisodeSource, float]],
            Field(description="a section like `episodes` for each, with its `weight` (1)"),
            Sources(),
        ],
    ):
        if not sources:
            raise ValueError("sources: none. One source or more")
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources], dtype=np.float64)
        self._weights = (weights / weights.sum()).tolist()
        self._bounds = np.cumsum(weights)[:-1] / weights.sum()
        # A mixture within this one must not choose by the same numbers.
        parts = [getattr(source, "_in_full", source.name) for source in self.sources]
        self._in_full = f"{self.name}({', '.join(parts)})"
        self.task, self.vocabulary = self.sources[0].task, self.sources[0].vocabulary
        for place, source in enumerate(self.sources[1:], start=1):
            _refuse_other_shape(place, source, self.sources[0])
        tasks = [source.tasks for source in self.sources]
        self._first_task = np.cumsum([0, *(number or 0 for number in tasks)])
        self.tasks = None if None in tasks else int(self._first_task[-1])

    def chosen(self, split: fsl.Split, indices: Sequence[int], seed: int) -> np.ndarray:
        """(len(indices),) the place in `sources` of the source of each episode."""
        drawn = fsl.to_uniform(fsl.draw_bits(seed, f"{split}/{self._in_full}", indices, 1))[:, 0]
        return np.searchsorted(self._bounds, drawn, side="right")

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        numbers, chosen = np.array(list(indices), dtype=np.int64), self.chosen(split, indices, seed)
        parts, rows = [], []
        for place, source in enumerate(self.sources):
            mine = np.flatnonzero(chosen == place)
            if len(mine):
                part = source.batch(split, numbers[mine].tolist(), seed, task)
                parts.append(part._replace(id=self._ids(split, part.id, place)))
                rows.append(mine)
        back = torch.from_numpy(np.argsort(np.concatenate(rows)))
        return _joined(parts, back)

    def groups(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> Sequence[fsl.Group]:
        """If shapes vary, each source draws those of its own episodes."""
        task = task or self.task
        if not task.varies:
            return super().groups(split, indices, seed, task)
        numbers, chosen = np.array(list(indices), dtype=np.int64), self.chosen(split, indices, seed)
        alike: dict[Hashable, list[fsl.Group]] = {}
        for place, source in enumerate(self.sources):
            mine = np.flatnonzero(chosen == place)
            for group in source.groups(split, numbers[mine].tolist(), seed, task):
                ids = self._ids(split, group.episodes.id, place)
                own = group._replace(
                    episodes=group.episodes._replace(id=ids),
                    places=tuple(mine[list(group.places)].tolist()),
                )
                rows = group.episodes.support.x.shape[1]
                alike.setdefault((group.task, rows), []).append(own)
        return [_one_group(groups) for groups in alike.values()]

    def classes_of(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> list[tuple[str, ...]] | None:
        """Those of the sources, as `inspect` calls them; None if a source does not name its own."""
        numbers, chosen = np.array(list(indices), dtype=np.int64), self.chosen(split, indices, seed)
        found: dict[int, tuple[str, ...]] = {}
        for place, (label, source) in enumerate(zip(self._names, self.sources, strict=True)):
            mine = np.flatnonzero(chosen == place)
            names = source.classes_of(split, numbers[mine].tolist(), seed, task)
            if names is None:
                return None
            full = [tuple(f"{label}: {name}" for name in own) for own in names]
            found.update(zip(mine.tolist(), full, strict=True))
        return [found[i] for i in range(len(numbers))]

    def items_needed(self, task: fsl.TaskShape) -> int:
        return max(source.items_needed(task) for source in self.sources)

    def _ids(self, split: fsl.Split, ids: torch.Tensor, place: int) -> torch.Tensor:
        """Those of the source, but for a finite set of training tasks: those come one by one."""
        return ids + int(self._first_task[place]) if self.tasks and split == "train" else ids

    def to(self, device: torch.device | str) -> Mixture:
        self.sources = [source.to(device) for source in self.sources]
        return self

    def check(self, split: fsl.Split, task: fsl.TaskShape | None = None) -> None:
        faults = []
        for source in self.sources:
            try:
                source.check(split, task)
            except fsl.DataError as error:
                faults.append(str(error))
        if faults:
            raise fsl.DataError("\n".join(dict.fromkeys(faults)))

    def inspect(self, split: fsl.Split, digest: bool = True) -> fsl.SplitContents:
        """The classes of all sources, as `omniglot: Greek/character01`."""
        found = dict(
            zip(self._names, [s.inspect(split, digest) for s in self.sources], strict=True)
        )
        digests = [contents.digest for contents in found.values()]
        whole = None
        if any(digests):
            text = json.dumps([self._weights, digests])
            whole = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return fsl.SplitContents(
            {f"{n}: {k}": v for n, c in found.items() for k, v in c.classes.items()},
            whole,
            {f"{n}: {k}": v for n, c in found.items() for k, v in c.files.items()},
            [item for contents in found.values() for item in contents.passed_over],
        )

    @property
    def _names(self) -> list[str]:
        """Those of the sources, with their place where one comes twice."""
        names = [source.name for source in self.sources]
        return [n if names.count(n) == 1 else f"{n} {i}" for i, n in enumerate(names)]

    def decode(self, file: Path) -> torch.Tensor:
        return self.sources[0].decode(file)


def _refuse_other_shape(place: int, source: fsl.EpisodeSource, first: fsl.EpisodeSource) -> None:
    theirs, ours = ({"vocabulary": s.vocabulary, **asdict(s.task)} for s in (source, first))
    for key, found in theirs.items():
        if found != ours[key]:
            raise ValueError(
                f"sources.{place}: {source.name!r} has {key} {found}, and {first.name!r} has "
                f"{ours[key]}. Sources with tasks of one shape"
            )


def _one_group(groups: Sequence[fsl.Group]) -> fsl.Group:
    """Groups of one shape as one, in the order of the batch."""
    places = np.concatenate([group.places for group in groups])
    episodes = _joined([group.episodes for group in groups], torch.from_numpy(places.argsort()))
    return fsl.Group(groups[0].task, episodes, tuple(sorted(places.tolist())))


def _joined(parts: Sequence[fsl.Episode], back: torch.Tensor) -> fsl.Episode:
    """Batches of several sources as one.

    back: (meta_batch_size,) the row of each episode when the batches lie one after the other.
    """
    if len(parts) == 1:
        return parts[0]
    index = back.to(parts[0].id.device)

    def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors))[index]

    support, query = (
        fsl.LabelledSet(joined([s.x for s in sets]), joined([s.y for s in sets]))
        for sets in ([p.support for p in parts], [p.query for p in parts])
    )
    return fsl.Episode(support, query, joined([part.id for part in parts]))


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Mixture)

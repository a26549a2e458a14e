"""What the data of a recipe is made of, before anything is trained on it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fsl_core.assembly.experiment import Experiment, check_data, splits_in_use
from fsl_core.data.cache import content_key
from fsl_core.data.folders import PassedOver, picture_size
from fsl_core.data.source import EpisodeSource, Split, SplitContents
from fsl_core.episode import TaskShape
from fsl_core.errors import DataError
from fsl_core.runs.data_record import passed_over
from fsl_core.text import printable


@dataclass(frozen=True)
class Place:
    """Where a picture lies."""

    split: str
    of_class: str
    file: Path

    def __str__(self) -> str:
        return f"{self.split} {printable(self.file)}"

    def as_dict(self) -> dict[str, str]:
        return {
            "split": self.split,
            "class": printable(self.of_class),
            "file": printable(self.file),
        }


@dataclass(frozen=True)
class DataReport:
    """What the splits in use hold.

    contents: of every split that could be listed; `test on <label>` for a further source.
    wanted: the episodes asked of each.
    needed: items that they take of a class.
    faults: why a run would be refused; empty if it would not.
    """

    contents: dict[str, SplitContents]
    wanted: dict[str, TaskShape]
    needed: dict[str, int]
    faults: list[str]

    @cached_property
    def passed_over(self) -> list[PassedOver]:
        return passed_over(self.contents.values())

    @cached_property
    def in_many_splits(self) -> dict[str, list[str]]:
        """Classes that more than one split holds."""
        splits: dict[str, list[str]] = defaultdict(list)
        for split, contents in self.contents.items():
            for name in contents.classes:
                splits[name].append(split)
        return {name: found for name, found in splits.items() if len(found) > 1}

    @cached_property
    def too_small(self) -> dict[str, dict[str, int]]:
        """Classes with fewer items than an episode takes of one, with their number."""
        return {
            split: few
            for split, contents in self.contents.items()
            if (few := _smaller_than(contents, self.needed[split]))
        }

    @cached_property
    def identical(self) -> list[list[Place]]:
        """Groups of files with equal contents that lie in more than one class or split."""
        places = [
            Place(split, name, file)
            for split, contents in self.contents.items()
            for name, files in contents.files.items()
            for file in files
        ]
        # Files of other sizes cannot be equal, so few files are read.
        groups = _groups(_groups([places], _size), _content)
        return [group for group in groups if len({(p.split, p.of_class) for p in group}) > 1]

    def sizes(self, split: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """(width, height) of the smallest and of the largest picture; None without files."""
        files = [file for files in self.contents[split].files.values() for file in files]
        sizes = [size for file in files if (size := picture_size(file))]
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        return (by_area[0], by_area[-1]) if by_area else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        return {
            "splits": {split: self._split(split) for split in self.contents},
            "passed_over": [
                {
                    "path": printable(item.path),
                    "reason": item.reason,
                    "detail": printable(item.detail),
                }
                for item in self.passed_over
            ],
            "classes_in_many_splits": _shown_keys(self.in_many_splits),
            "too_small": {split: _shown_keys(few) for split, few in self.too_small.items()},
            "identical": [[place.as_dict() for place in group] for group in self.identical],
            "faults": self.faults,
        }

    def _split(self, split: str) -> dict[str, Any]:
        contents, sizes = self.contents[split], self.sizes(split)
        return {
            "classes": _shown_keys(contents.classes),
            "digest": contents.digest,
            "smallest": sizes and list(sizes[0]),
            "largest": sizes and list(sizes[1]),
        }


def report_data(experiment: Experiment) -> DataReport:
    """Read the data of every split in use; what it is made of, and why a run would be refused."""
    own = splits_in_use(experiment)
    used: dict[str, tuple[EpisodeSource, Split, TaskShape]] = {
        split: (experiment.source, split, task) for split, task in own.items()
    }
    for label, source in experiment.further.items():
        used[f"test on {label}"] = (source, "test", source.task)
    faults: list[str] = []
    try:
        check_data(experiment)
    except DataError as error:
        faults = str(error).splitlines()
    contents = {}
    for name, (source, split, _) in used.items():
        with suppress(DataError):  # which is among the faults
            contents[name] = source.inspect(split, digest=not faults)
    tasks = {name: task for name, (*_, task) in used.items()}
    needed = {name: source.items_needed(task) for name, (source, _, task) in used.items()}
    return DataReport(contents, tasks, needed, faults)


def _smaller_than(contents: SplitContents, needed: int) -> dict[str, int]:
    return {name: count for name, count in contents.classes.items() if count < needed}


def _groups(places: Iterable[list[Place]], key: Callable[[Path], Hashable]) -> list[list[Place]]:
    """The members of each group that have the same key, if there are two or more.

    A file whose key is None, because it cannot be read, is in no group.
    """
    found = []
    for group in places:
        by_key: dict[Hashable, list[Place]] = defaultdict(list)
        for place in group:
            by_key[key(place.file)].append(place)
        by_key.pop(None, None)
        found += [same for same in by_key.values() if len(same) > 1]
    return found


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _content(file: Path) -> str | None:
    try:
        return content_key(file)
    except DataError:
        return None


def _shown_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {printable(name): value for name, value in values.items()}

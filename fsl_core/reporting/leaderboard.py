"""A page made from results that `fsl bench` wrote: who is ahead on a task, and of whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fsl_core.errors import RunError
from fsl_core.reporting.many import Method, grouped, pair
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.papers import PaperTable
from fsl_core.reporting.scores import RunScores, judged_unlike
from fsl_core.reporting.statistics import holm, tied_with_best
from fsl_core.runs.files import Figure, Record, Whole, check_record, load_json

LEVEL = 0.05
"""Of the paired tests, after Holm's correction over all pairs of a task."""


class Submission(Record):
    """What a result file of a benchmark holds at least."""

    benchmark: str
    version: Whole
    episode_set: str
    metric: str
    interval: float
    episodes: Annotated[int, Field(gt=1, lt=2**63)]
    scores: list[Figure]
    name: str
    norm: str
    transductive: bool
    n_query: Whole
    seed: Whole
    steps: Whole
    training_seconds: float
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Beaten:
    """Whether the first of a pair is ahead of the second: its mean difference, and the p-value."""

    difference: float
    p_holm: float

    @property
    def told(self) -> str:
        if self.p_holm >= LEVEL:
            return f"= ({self.difference:+.3f})"
        return f"{self.difference:+.3f}"


@dataclass(frozen=True)
class Board:
    """One version of a task.

    methods: best first.
    pairs:   (row, column) -> whether the method of the row is ahead of that of the column.
    """

    title: str
    episode_set: str
    metric: str
    episodes: int
    methods: tuple[Method, ...]
    best: tuple[bool, ...]
    pairs: Mapping[tuple[int, int], Beaten]

    @property
    def notes(self) -> list[str]:
        return judged_unlike({m.name: next(iter(m.runs.values())).judging for m in self.methods})

    def table(self) -> PaperTable:
        """A line for each method; bold is the best, and what ties with it."""
        headings = ["", self.metric, "seeds", "norm", "steps", "training", "beats", "loses to"]
        rows = []
        for i, method in enumerate(self.methods):
            first = next(iter(method.runs.values()))
            seconds = np.mean([run.result["training_seconds"] for run in method.runs.values()])
            others = [self.pairs[i, j] for j in range(len(self.methods)) if j != i]
            ahead = [one.difference > 0 for one in others if one.p_holm < LEVEL]
            wins = sum(up == first.higher_is_better for up in ahead)
            score = f"{method.score:.4f} ± {method.interval:.4f}"
            told = [first.judging.norm_in_short, str(first.result["steps"]), f"{seconds:.0f} s"]
            counts = [str(wins), str(len(ahead) - wins)]
            rows.append([method.name, score, " ".join(method.runs), *told, *counts])
        return PaperTable(headings, rows, {(i, 1) for i, best in enumerate(self.best) if best})

    def who_beats_whom(self) -> PaperTable:
        """The method of a row minus that of a column; `=` where the test finds no difference."""
        names = [method.name for method in self.methods]
        rows = [
            [name, *(self.pairs[i, j].told if j != i else "" for j in range(len(names)))]
            for i, name in enumerate(names)
        ]
        return PaperTable(["row minus column", *names], rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        methods = [
            {
                "name": method.name,
                "files": [str(run.directory) for run in method.runs.values()],
                "seeds": list(method.runs),
                self.metric: method.score,
                "interval": method.interval,
                "best": best,
            }
            for method, best in zip(self.methods, self.best, strict=True)
        ]
        pairs = [
            {"first": i, "second": j, "difference": one.difference, "p_holm": one.p_holm}
            for (i, j), one in self.pairs.items()
            if i < j
        ]
        told = {"benchmark": self.title, "episode_set": self.episode_set, "metric": self.metric}
        return {**told, "methods": methods, "pairs": pairs, "notes": self.notes}


def read_submissions(places: Sequence[Path]) -> list[RunScores]:
    """The result files, and those in the folders. RunError if one is damaged."""
    files = [
        file
        for place in places
        for file in (sorted(place.glob("*.json")) if place.is_dir() else [place])
    ]
    if not files:
        told = ", ".join(map(str, places))
        raise RunError(f"{told}: no result here. Files that `fsl bench` wrote")
    return [_read(file) for file in files]


def _read(file: Path) -> RunScores:
    try:
        found = check_record(load_json(file.read_bytes()), Submission)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{file}: {reason}. A file that `fsl bench` wrote") from error
    scores = np.array(found["scores"], dtype=float)
    mean = found.get(found["metric"])
    whole = len(scores) == found["episodes"]
    same = isinstance(mean, float) and np.isclose(scores.mean(), mean, rtol=1e-9, atol=1e-12)
    if not whole or not same:
        told = f"{file}: {len(scores)} scores, whose mean is not its {found['metric']}"
        raise RunError(f"{told}. The file as `fsl bench` wrote it")
    return RunScores(file, {key: v for key, v in found.items() if key != "scores"}, scores)


def boards(submissions: Sequence[RunScores]) -> list[Board]:
    """A board for each task, in the order of their names.

    Raises RunError for results of one task that differ in version, episodes or metric.
    """
    tasks: dict[str, list[RunScores]] = {}
    for one in submissions:
        of_task = tasks.setdefault(one.result["benchmark"], [])
        for key in ("version", "episode_set", "metric"):
            if of_task and one.result[key] != (known := of_task[0].result[key]):
                raise RunError(
                    f"{one.directory}: {one.result['benchmark']} with {key} {one.result[key]}, "
                    f"but {of_task[0].directory} has {known}. Results of one version alone"
                )
        of_task.append(one)
    return [_board(task) for _, task in sorted(tasks.items())]


def _board(submissions: Sequence[RunScores]) -> Board:
    first = submissions[0].result
    better = submissions[0].higher_is_better
    found = grouped([(one.result["recipe"], one.result["name"], one) for one in submissions])
    methods = sorted(found, key=lambda method: -method.score if better else method.score)
    best = tied_with_best([method.scores for method in methods], better)
    pairs = dict(_pairs(methods, better))
    title = f"{first['benchmark']}, version {first['version']}"
    told = (title, first["episode_set"], first["metric"], first["episodes"])
    return Board(*told, tuple(methods), tuple(best), pairs)


def _pairs(methods: Sequence[Method], better: bool) -> Iterator[tuple[tuple[int, int], Beaten]]:
    """By the test over seeds and episodes where a pair shares two seeds, else over episodes."""
    places = list(combinations(range(len(methods)), 2))
    tests = [pair(methods[j], methods[i], better) for i, j in places]
    adjusted = holm([(both or paired).p for paired, both in tests])
    for (i, j), (paired, _), p in zip(places, tests, adjusted, strict=True):
        yield (i, j), Beaten(paired.difference, p)
        yield (j, i), Beaten(-paired.difference, p)


def write_leaderboard(path: Path, found: Sequence[Board]) -> Path:
    """Write all boards as one HTML file; returns its path."""
    return write_page(path, "leaderboard.html", boards=found)

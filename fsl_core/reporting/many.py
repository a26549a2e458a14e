"""Several runs beside the first one: methods over their seeds, on the same frozen episodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fsl_core.config.document import read_document
from fsl_core.errors import RunError
from fsl_core.reporting.comparison import compare_runs
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.papers import PaperTable
from fsl_core.reporting.scores import RunScores, judged_unlike
from fsl_core.reporting.statistics import (
    PairedDifference,
    TwoLevel,
    holm,
    over_seeds,
    paired_difference,
    tied_with_best,
    two_level,
)
from fsl_core.runs.files import RECIPE
from fsl_core.sweeping.plan import LOCATIONS

SAME_METHOD = ("seed", "requires", "expect")
"""Keys of a recipe in which runs of one method may differ."""

PLACES = (*LOCATIONS, "weights")
"""Options that say where something lies on a machine."""


@dataclass(frozen=True)
class Method:
    """Runs of one recipe by their seed."""

    name: str
    runs: Mapping[str, RunScores]

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """(n_episodes,) of each seed."""
        return {seed: run.scores for seed, run in self.runs.items()}

    @property
    def score(self) -> float:
        return float(np.mean(list(self.scores.values())))

    @property
    def interval(self) -> float:
        """95 %: over seeds and episodes together, or over episodes with one seed."""
        if len(self.runs) == 1:
            return float(next(iter(self.runs.values())).result["interval"])
        return two_level(np.stack(list(self.scores.values()))).interval

    def mean(self, seeds: Sequence[str]) -> np.ndarray:
        """(n_episodes,), each episode's mean over these seeds."""
        return np.mean([self.scores[seed] for seed in seeds], axis=0)


@dataclass(frozen=True)
class Against:
    """A method minus the first one.

    paired: over episodes, each averaged over the seeds that both have, or else over those of each.
    both:   over seeds and episodes; None if the two share fewer than two seeds.
    p_holm, p_seeds_holm: adjusted for all methods.
    """

    paired: PairedDifference
    p_holm: float
    both: TwoLevel | None
    p_seeds_holm: float | None


@dataclass(frozen=True)
class Compared:
    """against: of every method but the first."""

    metric: str
    episode_set: str
    methods: tuple[Method, ...]
    against: tuple[Against, ...]
    best: tuple[bool, ...]
    notes: tuple[str, ...]

    def table(self) -> PaperTable:
        """A line for each method; bold is the best, and what ties with it."""
        seeds = any(one.both for one in self.against)
        headings = ["", self.metric, "seeds", f"minus {self.methods[0].name}", "p (Holm)"]
        headings += ["better, equal, worse", *(["seeds too", "p (Holm)"] if seeds else []), "best"]
        rows = []
        for i, (method, best) in enumerate(zip(self.methods, self.best, strict=True)):
            score = f"{method.score:.4f} ± {method.interval:.4f}"
            told = _told(self.against[i - 1], seeds) if i else [""] * (len(headings) - 4)
            rows.append([method.name, score, " ".join(method.runs), *told, "yes" if best else ""])
        return PaperTable(headings, rows, {(i, 1) for i, best in enumerate(self.best) if best})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        methods = [
            {
                "name": method.name,
                "runs": [str(run.directory) for run in method.runs.values()],
                "seeds": list(method.runs),
                self.metric: method.score,
                "interval": method.interval,
                "best": best,
                "minus_first": asdict(self.against[i - 1]) if i else None,
            }
            for i, (method, best) in enumerate(zip(self.methods, self.best, strict=True))
        ]
        told = {"metric": self.metric, "episode_set": self.episode_set}
        return {**told, "methods": methods, "notes": list(self.notes)}


def _told(one: Against, seeds: bool) -> list[str]:
    paired, both = one.paired, one.both
    found = [f"{paired.difference:+.4f} ± {paired.interval:.4f}", f"{one.p_holm:.2g}"]
    found.append(f"{paired.wins}, {paired.ties}, {paired.losses}")
    if seeds:
        found += [f"± {both.interval:.4f}", f"{one.p_seeds_holm:.2g}"] if both else ["", ""]
    return found


def compare_many(runs: Sequence[RunScores]) -> Compared:
    """Every method minus the first one.

    Runs whose recipes differ in the seed alone are one method; if all of them do, each is its own.
    Raises RunError if they were not judged on the same episodes.
    """
    for run in runs[1:]:
        compare_runs(runs[0], run)  # which refuses other episodes, and says what differs
    methods = methods_of(runs)
    better = runs[0].higher_is_better
    pairs = [pair(methods[0], other, better) for other in methods[1:]]
    adjusted = iter(holm([paired.p for paired, _ in pairs]))
    of_seeds = iter(holm([both.p for _, both in pairs if both]))
    against = [
        Against(paired, next(adjusted), both, next(of_seeds) if both else None)
        for paired, both in pairs
    ]
    best = tied_with_best([method.scores for method in methods], better)
    first = runs[0]
    notes = _notes(methods)
    told = (first.metric, first.result["episode_set"], tuple(methods), tuple(against))
    return Compared(*told, tuple(best), tuple(notes))


def method_key(recipe: Mapping[str, Any], leave_out: Sequence[str] = SAME_METHOD) -> str:
    """What decides the figures of a recipe besides its seed: the same text for the same method.

    leave_out: sections that do not count. Where data and weights lie never counts.
    """
    kept = {key: value for key, value in recipe.items() if key not in leave_out}
    return json.dumps(_without_locations(kept), sort_keys=True)


def _without_locations(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_locations(item) for k, item in value.items() if k not in PLACES}
    return [_without_locations(item) for item in value] if isinstance(value, list) else value


def pair(first: Method, second: Method, better: bool) -> tuple[PairedDifference, TwoLevel | None]:
    shared = [seed for seed in first.runs if seed in second.runs]
    before, after = (one.mean(shared or list(one.runs)) for one in (first, second))
    return paired_difference(before, after, better), over_seeds(first.scores, second.scores)


def methods_of(runs: Sequence[RunScores]) -> list[Method]:
    """The runs by their recipes; each by itself if they have one recipe alone."""
    read = [(read_document(run.directory / RECIPE).data, run.directory.name, run) for run in runs]
    found = grouped(read)
    if len(found) > 1:
        return found
    return [Method(name, {str(recipe.get("seed", 0)): run}) for recipe, name, run in read]


def grouped(runs: Sequence[tuple[Mapping[str, Any], str, RunScores]]) -> list[Method]:
    """Runs with their recipes and names as methods, in the order in which these come first.

    RunError if a run is there twice.
    """
    groups: dict[str, dict[str, RunScores]] = {}
    names: dict[str, str] = {}
    for recipe, name, run in runs:
        key, seed = method_key(recipe), str(recipe.get("seed", 0))
        group = groups.setdefault(key, {})
        if seed in group:
            told = f"{run.directory}: seed {seed} of the same recipe as {group[seed].directory}"
            raise RunError(f"{told}. Each run once")
        group[seed] = run
        names.setdefault(key, name)
    unlike = len(set(names.values())) == len(names)
    return [
        Method(names[key] if unlike else str(next(iter(group.values())).directory), group)
        for key, group in groups.items()
    ]


def _notes(methods: Sequence[Method]) -> Iterator[str]:
    judgings = {method.name: next(iter(method.runs.values())).judging for method in methods}
    yield from judged_unlike(judgings)
    if max(len(method.runs) for method in methods) > 1:
        yield "± is over seeds and test episodes together where a method has several seeds"
    else:
        yield "this tells of these trained runs on new episodes, not of new trainings"


def write_many(path: Path, found: Compared) -> Path:
    """Write the comparison as one HTML file; returns its path."""
    return write_page(path, "comparisons.html", found=found)

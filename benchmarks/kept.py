"""Runs that `fsl keep` wrote, put into rows: one for each recipe, over its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fsl_core.config.matrix import SEED, has_matrix
from fsl_core.config.recipe import Recipe, read_recipe
from fsl_core.config.search import has_search
from fsl_core.config.sections import Catalogue
from fsl_core.reporting.many import method_key
from fsl_core.reporting.scores import RunScores, figure_of, read_scores
from fsl_core.reporting.statistics import two_level
from fsl_core.runs.files import ENVIRONMENT, RECIPE, Environment, read_json

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "docs" / "results" / "runs"

ELSEWHERE = (SEED, "requires", "expect", "execution")
"""Sections of a recipe that make no other row: modes differ by rounding alone."""


@dataclass(frozen=True)
class Row:
    """Runs of one recipe by their seed.

    names:  of the folders that they are kept in, in the order of the seeds.
    file:   the recipe of the repository that they ran; None if they ran a changed one.
    runs:   their scores, by seed.
    """

    names: tuple[str, ...]
    recipe: Recipe
    file: Path | None
    runs: Mapping[str, RunScores]

    @cached_property
    def first(self) -> RunScores:
        return next(iter(self.runs.values()))

    def is_named(self, pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in self.names)

    def on(self, label: str | None) -> Row:
        """The same on a further source of `evaluate.on`."""
        runs = {seed: run.on(label) for seed, run in self.runs.items()}
        return Row(self.names, self.recipe, self.file, runs)

    @property
    def scores(self) -> dict[str, np.ndarray]:
        return {seed: run.scores for seed, run in self.runs.items()}

    @property
    def score(self) -> float:
        return float(np.mean([run.scores.mean() for run in self.runs.values()]))

    @property
    def interval(self) -> float:
        """95 %: over seeds and episodes together, or over episodes where there is one seed."""
        if len(self.runs) == 1:
            return float(self.first.result["interval"])
        return two_level(np.stack(list(self.scores.values()))).interval

    @property
    def processors(self) -> list[str]:
        """What trained them: the GPU, or else the processor."""
        found: dict[str, None] = {}
        for run in self.runs.values():
            environment = read_json(run.directory / ENVIRONMENT, Environment)
            for part in ({}, *environment.get("went_on", [])):
                environment |= part
                found[_trained_by(environment)] = None
        return list(found)

    def mean(self, key: str) -> float:
        """Over the runs, of a number of their results."""
        return float(np.mean([run.result[key] for run in self.runs.values()]))

    @property
    def unexpected(self) -> Iterator[str]:
        """A line for each figure that `expect:` of its recipe does not allow, or leaves out."""
        if self.file is None:
            return
        expected = self.recipe.sections.expect
        if not expected:
            yield f"{self.file}: an empty `expect:`, and {self.names[0]} is kept. Its figure"
        for name, run in zip(self.names, self.runs.values(), strict=True):
            for key, wanted in expected.items():
                found = figure_of(run.result, key)
                if found is None or abs(found - wanted.value) > wanted.tolerance:
                    told = f"expect.{key} is {wanted.value} ± {wanted.tolerance}"
                    yield f"{self.file}: {told}, and {name} has {found}. One of them is wrong"


def _trained_by(environment: Mapping[str, Any]) -> str:
    if str(environment.get("device")).startswith("cuda"):
        return environment.get("gpu") or "a GPU"
    return environment.get("processor", "not recorded")


def read_rows(folder: Path, catalogue: Catalogue, recipes: Mapping[Path, Recipe]) -> list[Row]:
    """The kept runs below a folder, in the order of their names.

    recipes: those of the repository, as `read_recipes` gives them.
    Raises FslError if one is damaged, or if its recipe cannot be checked with these plugins.
    """
    shipped = {_identity(recipe): (file, recipe) for file, recipe in recipes.items()}
    found: dict[str, dict[str, tuple[str, Recipe, RunScores]]] = {}
    for directory in sorted(path.parent for path in folder.glob(f"*/{RECIPE}")):
        recipe, scores = read_recipe(directory / RECIPE, catalogue), read_scores(directory)
        of_recipe = found.setdefault(_identity(recipe, scores.result.get("steps_changed")), {})
        of_recipe[str(recipe.sections.seed)] = (directory.name, recipe, scores)
    return [_row(runs, *shipped.get(identity, (None, None))) for identity, runs in found.items()]


def read_recipes(catalogue: Catalogue) -> dict[Path, Recipe]:
    """Every recipe of one run in the repository, by its path there."""
    return {
        file.relative_to(ROOT): read_recipe(file, catalogue)
        for file in sorted((ROOT / "recipes").rglob("*.yaml"))
        if not (has_matrix(file) or has_search(file))
    }


def _row(
    runs: Mapping[str, tuple[str, Recipe, RunScores]], file: Path | None, recipe: Recipe | None
) -> Row:
    ordered = dict(sorted(runs.items(), key=lambda item: int(item[0])))
    names, recipes, scores = zip(*ordered.values(), strict=True)
    return Row(names, recipe or recipes[0], file, dict(zip(ordered, scores, strict=True)))


def _identity(recipe: Recipe, steps_changed: Sequence[Mapping[str, Any]] | None = None) -> str:
    """What a recipe is known by; a run that was ended early is one of the recipe it began with."""
    resolved = recipe.resolved()
    if steps_changed:
        resolved = {**resolved, "outer": {**resolved["outer"], "steps": steps_changed[0]["from"]}}
    return method_key(resolved, ELSEWHERE)


def of_one_set(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups that were judged on the same episodes."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.first.result["episode_set"], []).append(row)
    return list(groups.values())

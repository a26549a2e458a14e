"""What a finished run scored on each of its frozen test episodes, read from its directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fsl_core.config.document import read_document
from fsl_core.errors import FslError, RunError
from fsl_core.runs.files import (
    EPISODES,
    RECIPE,
    RESULT,
    UNROLLED,
    is_file,
    read_result,
    reading,
)
from fsl_core.text import in_words

THESE_RUNS = "intervals are over test episodes of these trained runs, not over trainings"


@dataclass(frozen=True)
class Judging:
    """What a score depends on besides the method. Scores that differ in it are not of one kind.

    norm: the normalisation policy.
    transductive: predictions depend on the other queries.
    n_query: of each class, or of a task without classes; a range if episodes differ in it; None if
        it is not known.
    episodes: their shapes in words, if they vary.
    classes: whether tasks have classes.
    """

    norm: str
    transductive: bool
    n_query: int | tuple[int, int] | None
    classes: bool = True
    episodes: str = ""

    @property
    def norm_in_short(self) -> str:
        told = self.norm == "transductive" or not self.transductive
        return self.norm if told else f"{self.norm}, transductive adapter"

    @property
    def norm_in_full(self) -> str:
        verb = "depend" if self.transductive else "do not depend"
        return f"norm {self.norm}: predictions {verb} on the other queries"

    @property
    def queries_in_full(self) -> str:
        if self.n_query is None:
            return "an unknown number of queries"
        unit = "query" if self.n_query == 1 else "queries"
        told = f"{in_words(self.n_query)} {unit} a {'class' if self.classes else 'task'}"
        return f"{told}, in episodes of {self.episodes}" if self.episodes else told


def judging_of(directory: Path, result: Mapping[str, Any]) -> Judging:
    """How a finished run was judged. Earlier versions left the queries to its recipe."""
    norm = str(result.get("norm", "unknown"))
    together = result.get("transductive", norm == "transductive")
    n_query = result.get("n_query") or _of_recipe(directory, "n_query")
    n_query = tuple(n_query) if isinstance(n_query, list) else n_query
    classes, shapes = result["metric"] == "accuracy", result.get("judged_on", "")
    return Judging(norm, bool(together), n_query, classes, shapes)


def chance_of(directory: Path, result: Mapping[str, Any]) -> float | None:
    """The accuracy of guesses; None if episodes differ in their ways, or have no classes."""
    ways = _of_recipe(directory, "n_way") if result["metric"] == "accuracy" else None
    return 1 / ways if ways else None


def _of_recipe(directory: Path, key: str) -> int | None:
    """A size of test episodes, as the recipe of a run says it."""
    try:
        recipe = read_document(directory / RECIPE).data
    except FslError:
        return None
    sections = [recipe.get(name) for name in ("evaluate", "episodes")]
    found = [part.get(key) for part in sections if isinstance(part, dict)]
    given = next((n for n in found if n is not None), None)
    return given if isinstance(given, int) else None


def judged_unlike(judgings: Mapping[str, Judging]) -> list[str]:
    """A line for each way in which figures, by name, are not of one kind; usually none."""
    ways = {
        "norm": (lambda judging: judging.transductive, lambda judging: judging.norm_in_full),
        "queries": (
            lambda judging: (judging.n_query, judging.episodes),
            lambda judging: judging.queries_in_full,
        ),
    }
    return [line for way in ways.values() if (line := _unlike(judgings, *way))]


def _unlike(
    judgings: Mapping[str, Judging],
    key: Callable[[Judging], Hashable],
    text: Callable[[Judging], str],
) -> str:
    groups: dict[Hashable, list[str]] = {}
    for name, judging in judgings.items():
        groups.setdefault(key(judging), []).append(name)
    if len(groups) < 2:
        return ""
    told = []
    for names in groups.values():
        texts = sorted({text(judgings[name]) for name in names})
        told.append(f"{_names(names)} ({', '.join(texts)})")
    return f"not judged alike: {'; '.join(told)}. Differences between them are due to this, too"


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} rows"


def scores_after_steps(result: Mapping[str, Any]) -> list[float]:
    """A result's score after 0, 1, ... inner steps; empty if it was not measured."""
    key = f"{result['metric']}_after_"
    return [result[f"{key}{k}"] for k in range(len(result)) if f"{key}{k}" in result]


@dataclass(frozen=True)
class RunScores:
    """What a finished run scored.

    result: what result.json holds.
    scores: (n_episodes,), in the order of the frozen episodes.
    further: what it scored on the further sources of `evaluate.on`, by label.
    label: of the source, if it is one of these.
    """

    directory: Path
    result: dict[str, Any]
    scores: np.ndarray
    further: Mapping[str, RunScores] = field(default_factory=dict)
    label: str | None = None

    def on(self, label: str | None) -> RunScores:
        """What it scored on the source with this label; None: on its own test episodes."""
        if label is not None and label not in self.further:
            found = ", ".join(self.further) or "none: it was judged on its own test episodes alone"
            raise RunError(f"{self.directory}: not judged on {label!r}. Its labels: {found}")
        return self if label is None else self.further[label]

    @property
    def metric(self) -> str:
        return self.result["metric"]

    @cached_property
    def judging(self) -> Judging:
        return judging_of(self.directory, self.result)

    @property
    def hypergradient(self) -> str:
        """How its meta-gradient was estimated, which is part of the method."""
        return self.result.get("hypergradient", UNROLLED)

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "mse"


def read_scores(directory: Path) -> RunScores:
    """Scores of a finished run.

    Raises RunError if it is unfinished, or if its table is not that of its result.
    """
    if not is_file(directory / RESULT):
        raise RunError(f"{directory}: no {RESULT} here. A finished run; `fsl resume` finishes one")
    result = read_result(directory)
    path = directory / EPISODES
    remedy = f"Delete {directory / RESULT}: `fsl resume {directory}` writes all results again"
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path}: no table of episodes. {remedy}") from error

    def read(judged: dict[str, Any], label: str | None = None) -> RunScores:
        column = judged["metric"] + (f" on {label}" if label else "")
        try:
            scores = np.array([float(row[column]) for row in rows])
        except (ValueError, KeyError, TypeError) as error:
            told = f"{path}: no table of episodes with a column {column}"
            raise RunError(f"{told}. {remedy}") from error
        mean = judged[judged["metric"]]  # of the table; a file may have been replaced or cut off
        whole = len(scores) == judged["episodes"]
        if not whole or not np.isclose(scores.mean(), mean, rtol=1e-9, atol=1e-12):
            raise RunError(
                f"{path}: {len(scores)} episodes, whose mean is not that of {RESULT}. {remedy}"
            )
        return RunScores(directory, judged, scores, label=label)

    rows_on = result.get("on", {})
    further = {label: read({**result, **row, "on": {}}, label) for label, row in rows_on.items()}
    return replace(read(result), further=further)


def figure_of(result: Mapping[str, Any], key: str) -> float | None:
    """The figure that a key of `expect` names, such as accuracy_on_mnist; None if it is absent."""
    metric, _, label = key.partition("_on_")
    return result.get("on", {}).get(label, {}).get(metric) if label else result.get(key)

"""Compares two finished runs, episode by episode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsl_core.config.document import read_document
from fsl_core.errors import RunError
from fsl_core.reporting import figures
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.scores import RunScores, judged_unlike
from fsl_core.reporting.statistics import PairedDifference, paired_difference
from fsl_core.runs.files import RECIPE, UNROLLED


def compare_runs(first: RunScores, second: RunScores) -> PairedDifference:
    """Second minus first on the same frozen episodes.

    Raises RunError, which says what differs, if their episodes are not the same.
    """
    one, other = first.result["episode_set"], second.result["episode_set"]
    if one != other:
        differing = ", ".join(_differing(first, second)) or "the data itself"
        alike = [f"--on {label}" for label in shared_labels(first, second)]
        raise RunError(
            f"{second.directory}: episode set {other}, but {first.directory} has {one}; "
            f"they differ in {differing}. "
            f"{', or '.join(['Two runs judged on the same test episodes', *alike])}"
        )
    return paired_difference(first.scores, second.scores, first.higher_is_better)


def shared_labels(first: RunScores, second: RunScores) -> list[str]:
    """The further sources on whose same test episodes both runs were judged."""
    return [
        label
        for label, scores in first.further.items()
        if label in second.further
        and scores.result["episode_set"] == second.further[label].result["episode_set"]
    ]


def compare_further(first: RunScores, second: RunScores) -> dict[str, PairedDifference]:
    """Second minus first on each further source that both were judged on, by its label."""
    labels = shared_labels(first, second)
    return {label: compare_runs(first.on(label), second.on(label)) for label in labels}


def further_left_out(first: RunScores, second: RunScores) -> list[str]:
    """A line for each further source on which the runs cannot be compared."""
    labels = {label: None for run in (first, second) for label in run.further}
    return [
        f"on {label}: not judged by both runs on the same test episodes"
        for label in labels
        if label not in shared_labels(first, second)
    ]


def run_names(first: RunScores, second: RunScores) -> tuple[str, str]:
    """Short names of two runs: those of their directories, if these differ."""
    names = [run.directory.name or str(run.directory) for run in (first, second)]
    if names[0] == names[1]:
        names = [str(run.directory) for run in (first, second)]
    return names[0], names[1]


def judging_told(first: RunScores, second: RunScores) -> list[str]:
    """How two runs were judged: a line for what they share, one for each way they differ."""
    one, other = first.judging, second.judging
    shared = []
    if one.norm_in_full == other.norm_in_full:
        shared.append(one.norm_in_full)
    if one.n_query == other.n_query:
        shared.append(one.queries_in_full)
    in_common = ["; ".join(shared)] if shared else []
    names = run_names(first, second)
    if names[0] == names[1]:  # a run compared with itself
        return in_common
    return [*in_common, *judged_unlike(dict(zip(names, (one, other), strict=True)))]


def method_told(first: RunScores, second: RunScores) -> list[str]:
    """The hypergradients of two runs in a line, unless both are unrolled."""
    one, other = first.hypergradient, second.hypergradient
    if one == other:
        return [] if one == UNROLLED else [f"hypergradient {one}"]
    names = run_names(first, second)
    return [f"another method: hypergradient {one} ({names[0]}), {other} ({names[1]})"]


def _differing(first: RunScores, second: RunScores) -> Iterator[str]:
    """Keys of the recipes that choose the test episodes and differ, with their values."""
    of_episodes = "episodes" if first.label is None else f"evaluate.on {first.label}"
    for section in (of_episodes, "evaluate"):
        one, other = (_section_of(run, section) for run in (first, second))
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key) and key not in ("checkpoint", "on"):
                yield f"{section}.{key} ({other.get(key)}, {one.get(key)})"


def _section_of(run: RunScores, section: str) -> dict[str, Any]:
    recipe = read_document(run.directory / RECIPE).data
    evaluate = recipe.get("evaluate")
    if section in recipe:
        found = recipe[section]
    else:
        listed = evaluate.get("on", []) if isinstance(evaluate, dict) else []
        found = next((each for each in listed if each.get("label") == run.label), {})
    return found if isinstance(found, dict) else {}


def write_comparison(path: Path, first: RunScores, second: RunScores) -> Path:
    """Write the comparison with its scatter of episodes as one HTML file; returns its path."""
    names = run_names(first, second)
    return write_page(
        path,
        "comparison.html",
        names=names,
        metric=first.metric,
        paired=compare_runs(first, second),
        episode_set=first.result["episode_set"],
        told=[
            *method_told(first, second),
            *judging_told(first, second),
            *further_left_out(first, second),
        ],
        further=compare_further(first, second),
        scatter=figures.scatter(first.scores, second.scores, names),
        results=[(str(run.directory), run.result) for run in (first, second)],
    )

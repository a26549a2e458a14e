"""A run's report: one HTML file with its curves, scores and settings, that fetches nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from fsl_core.hooks.run_view import RunView
from fsl_core.hooks.specs import hookimpl
from fsl_core.reporting.confusion import confusion_of
from fsl_core.reporting.figures import curve, histogram, inner_steps
from fsl_core.reporting.mosaics import show_episodes
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.scores import chance_of, judging_of, scores_after_steps
from fsl_core.runs.files import ENVIRONMENT, EPISODES, METRICS, RECIPE, RESULT

POINTS = "a point per outer step and its running mean"
CONFLICT_CAPTIONS = {
    "gradient_cosine": "Cosine between the meta-gradients of the tasks",
    "gradient_conflict": "Conflict of the meta-gradients of the tasks",
}


class ReportWriter:
    """Writes report.html when a run is complete: an observer plugin like any other."""

    @hookimpl
    def fsl_run_finished(self, run: RunView) -> None:
        if run.directory is not None:
            write_report(run.directory, run)


def write_report(
    directory: Path,
    run: RunView | None = None,
    why_no_episodes: str = "",
    page: Path | None = None,
) -> Path:
    """Write report.html of a finished run from the files of its directory; returns its path.

    run: with the judged weights restored. Its worst test episodes are predicted again and shown.
    why_no_episodes: what the page says in their place, without a run.
    page: where to write, if not in the directory.
    """
    result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    metrics = (directory / METRICS).read_text(encoding="utf-8")
    records = [json.loads(line) for line in metrics.splitlines()]
    with (directory / EPISODES).open(encoding="utf-8", newline="") as file:
        episodes = list(csv.DictReader(file))
    scores = [float(episode[result["metric"]]) for episode in episodes]
    shown, why = ([], why_no_episodes) if run is None else show_episodes(run, scores)
    return write_page(
        page or directory / "report.html",
        "run.html",
        name=directory.resolve().name,
        result=result,
        judging=judging_of(directory, result),
        confusion=confusion_of(directory),
        plots=_plots(result, records, scores, chance_of(directory, result)),
        shown=shown,
        why_not_shown=why,
        recipe=(directory / RECIPE).read_text(encoding="utf-8"),
        environment=json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8")),
    )


def _plots(
    result: dict[str, Any],
    records: list[dict[str, Any]],
    scores: list[float],
    chance: float | None,
) -> list[tuple[str, str]]:
    """(caption, SVG) of each figure; the conflict of meta-gradients if the engine recorded it."""
    metric = result["metric"]
    training = [r for r in records if "split" not in r]
    validation = [r for r in records if r.get("split") == "validation"]
    figures = []
    if training:
        caption = f"Loss of the training episodes, {POINTS}"
        figures.append((caption, curve(training, [], "loss")))
        caption = f"{metric} of training episodes (running mean)"
        if validation:
            caption += " and of validation (points, 95 % interval)"
        figures.append((caption, curve(training, validation, metric, chance)))
    figures.append((f"{metric} of each test episode", histogram(scores, metric, chance)))
    if steps := scores_after_steps(result):
        caption = f"Test {metric} before adaptation and after each inner step"
        figures.append((caption, inner_steps(steps, metric, chance)))
    for key, caption in CONFLICT_CAPTIONS.items():
        if any(key in record for record in training):
            figures.append((f"{caption}, {POINTS}", curve(training, [], key)))
    return figures

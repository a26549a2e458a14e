"""A run's report: one HTML file with its curves, scores and settings, that fetches nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from fsl_core.hooks.specs import hookimpl
from fsl_core.training.files import ENVIRONMENT, EPISODES, METRICS, RECIPE, RESULT, write_atomically
from fsl_core.training.run import Run


class ReportWriter:
    """Writes report.html when a run is complete: an observer plugin like any other."""

    @hookimpl
    def fsl_run_finished(self, run: Run) -> None:
        write_report(run.directory)


def write_report(directory: Path) -> Path:
    """Write report.html of a finished run from the files of its directory; returns its path."""
    result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]
    with (directory / EPISODES).open(encoding="utf-8", newline="") as file:
        episodes = list(csv.DictReader(file))
    template = Environment(loader=PackageLoader("fsl_core.reporting"), autoescape=select_autoescape()).get_template("run.html")
    html = template.render(
        result=result,
        plots=_plots(result, records, episodes),
        recipe=(directory / RECIPE).read_text(encoding="utf-8"),
        environment=json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8")),
    )
    path = directory / "report.html"
    write_atomically(path, html)
    return path


def _plots(result: dict[str, Any], records: list[dict[str, Any]], episodes: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(caption, SVG) of each figure."""
    metric = result["metric"]
    training = [r for r in records if "split" not in r]
    validation = [r for r in records if r.get("split") == "validation"]
    figures = [
        ("Loss of the training episodes, a point per outer step and its running mean", _curve(training, [], "loss")),
        (
            f"{metric} of training episodes (running mean) and of validation (points, 95 % interval)",
            _curve(training, validation, metric),
        ),
        (f"{metric} of each test episode", _histogram([float(e[metric]) for e in episodes], metric)),
    ]
    steps = [result[f"{metric}_after_{k}"] for k in range(len(result)) if f"{metric}_after_{k}" in result]
    if steps:
        figures.append((f"Test {metric} before adaptation and after each inner step", _steps(steps, metric)))
    return figures


def _axes(xlabel: str, ylabel: str):
    from matplotlib.figure import Figure

    grey = "#888888"  # readable on light and on dark
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=grey)
    axes.set_ylabel(ylabel, color=grey)
    axes.tick_params(colors=grey)
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_color(grey)
    return figure, axes


def _svg(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _curve(training: list[dict[str, Any]], validation: list[dict[str, Any]], key: str) -> str:
    figure, axes = _axes("outer step", key)
    steps, values = [r["step"] for r in training], [r[key] for r in training]
    window = max(1, len(values) // 50)
    means, running = [], 0.0
    for i, value in enumerate(values):
        running += value - (values[i - window] if i >= window else 0.0)
        means.append(running / min(i + 1, window))
    if not validation:
        thin = max(1, len(values) // 2000)
        axes.plot(steps[::thin], values[::thin], ".", color="#4c9be8", markersize=2, alpha=0.4)
    axes.plot(steps, means, color="#1f6fc4", label="training")
    if validation:
        axes.errorbar(
            [r["step"] for r in validation],
            [r[key] for r in validation],
            [r["interval"] for r in validation],
            fmt="o-",
            color="#e07b39",
            markersize=3,
            capsize=2,
            label="validation",
        )
        axes.legend(frameon=False, labelcolor="#888888")
    return _svg(figure)


def _histogram(scores: list[float], metric: str) -> str:
    figure, axes = _axes(metric, "episodes")
    axes.hist(scores, bins=min(30, max(5, len(set(scores)))), color="#4c9be8")
    return _svg(figure)


def _steps(steps: list[float], metric: str) -> str:
    figure, axes = _axes("inner steps", metric)
    axes.plot(range(len(steps)), steps, "o-", color="#1f6fc4")
    axes.set_xticks(range(len(steps)))
    return _svg(figure)

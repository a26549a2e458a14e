"""Feature re-use and layer patterns as tables, files and figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure

from fsl_core.config.recipe import Recipe
from fsl_core.config.yaml_text import to_yaml
from fsl_core.diagnosing.patterns import Pattern, Patterns
from fsl_core.diagnosing.reuse import FeatureReuse
from fsl_core.diagnosing.similarity import MEASURES
from fsl_core.errors import RunError
from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.reporting.figures import (
    BLUE,
    GREY,
    LIGHT_BLUE,
    ORANGE,
    as_named,
    axes,
    label,
    style,
    svg,
)
from fsl_core.runs.files import to_json, write_atomically

COLOURS = dict(zip(MEASURES, (LIGHT_BLUE, BLUE, ORANGE, "#c7902f", GREY), strict=True))
OPTION = "test_adapted"
TITLE = 48
"""Letters that fit above a panel."""
"""The option of an adapter that a pattern is written as."""


def write_reuse(folder: Path, found: Mapping[str, FeatureReuse], told: Mapping[str, Any]) -> None:
    """Write reuse.json, reuse.csv and reuse.svg; `told` is what the JSON has besides."""
    rows = [
        {"run": name, **row}
        for name, reuse in found.items()
        for row in [*reuse.rows(), *_score_rows(reuse)]
    ]
    runs = {name: reuse.summary() for name, reuse in found.items()}
    _write(folder, "reuse", {**told, "runs": runs}, rows, draw_reuse(found))


def _score_rows(reuse: FeatureReuse) -> list[dict[str, Any]]:
    scores = reuse.summary()["scores"]
    return [
        {"layer": name, "measure": reuse.metric, "note": "", "items": "", "reason": "", **score}
        for name, score in scores.items()
    ]


def _write(
    folder: Path, name: str, data: Mapping[str, Any], rows: Sequence[dict[str, Any]], figure: str
) -> None:
    table = io.StringIO()
    writer = CsvWriter(table)
    columns = list(rows[0])
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    write_atomically(folder / f"{name}.json", to_json(data, f"{name}.json", indent=2) + "\n")
    write_atomically(folder / f"{name}.csv", table.getvalue())
    write_atomically(folder / f"{name}.svg", figure + "\n")


def _cell(value: Any) -> Any:
    return "" if value is None else value


@as_named
def draw_reuse(found: Mapping[str, FeatureReuse]) -> str:
    """A panel for each run: distance by layer, a line for each measure, 95 % intervals."""
    figure = Figure(figsize=(0.8 + 4.2 * len(found), 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for panel, (name, reuse) in zip(panels, found.items(), strict=True):
        style(panel, "", "distance before to after")
        layers = list(reuse.distances)
        for measure, colour in COLOURS.items():
            of_measure = [row for row in reuse.rows() if row["measure"] == measure]
            drawn = [(layers.index(r["layer"]), r) for r in of_measure if r["mean"] is not None]
            if drawn:
                at, rows = zip(*drawn, strict=True)
                means, halves = ([row[k] or 0.0 for row in rows] for k in ("mean", "interval"))
                options = {"fmt": "o-", "markersize": 3, "capsize": 2, "color": colour}
                panel.errorbar(at, means, halves, label=measure, **options)
        panel.set_xticks(range(len(layers)), [*map(label, layers)], rotation=25, ha="right")
        told = [label(name), *wrap(_scores_in_short(reuse), TITLE)]
        panel.set_title("\n".join(told), fontsize=9, color=GREY)
    panels[0].legend(frameon=False, labelcolor=GREY, fontsize=8)
    return svg(figure)


def _scores_in_short(reuse: FeatureReuse) -> str:
    means = {name: score["mean"] for name, score in reuse.summary()["scores"].items()}
    told = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
    return f"{reuse.metric}: {told}"


def reuse_lines(name: str, reuse: FeatureReuse) -> list[str]:
    """What a terminal shows of a run."""
    lines = [f"{name}: {_scores_in_short(reuse)}"]
    for layer in reuse.distances:
        of_layer = [row for row in reuse.rows() if row["layer"] == layer]
        lines.append(f"  {layer}: {', '.join(map(_told, of_layer))}")
    reasons = {
        reason: f"{layer}, {measure}"
        for layer, of_layer in reversed(reuse.reasons.items())
        for measure, reason in of_layer.items()
    }
    return lines + [f"  null, such as {where}: {reason}" for reason, where in reasons.items()]


def _told(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return f"{row['measure']} null"
    interval = "" if row["interval"] is None else f" ± {row['interval']:.3f}"
    return f"{row['measure']} {row['mean']:.3f}{interval}"


def write_patterns(
    folder: Path, found: Patterns, chosen: Pattern, told: Mapping[str, Any], recipe: dict[str, Any]
) -> None:
    """Write patterns.json, patterns.csv, patterns.svg and pattern.yaml, the recipe."""
    rows = found.rows()
    flat = [{**row, "option": to_json(row["option"], "option")} for row in rows]
    data = {**told, "chosen": chosen.title(), "patterns": rows}
    _write(folder, "patterns", data, flat, draw_front(found, chosen))
    write_atomically(folder / "pattern.yaml", to_yaml(recipe))


def recipe_with(
    recipe: Recipe, found: Patterns, pattern: Pattern, run: Path, checkpoint: str
) -> dict[str, Any]:
    """The recipe that judges a trained run again, adapting by this pattern; it trains nothing.

    Raises RunError for an adapter that has no option for a pattern.
    """
    data = recipe.resolved()
    if OPTION not in data["adapter"]:
        raise RunError(
            f"adapter {data['adapter']['name']!r}: no option {OPTION}, so a pattern cannot be "
            "written as a recipe. maml, or an adapter with such an option"
        )
    steps = {OPTION: found.option(pattern), "test_steps": len(pattern.steps)}
    data["adapter"] = {**data["adapter"], **steps}
    data["outer"] = {**data["outer"], "steps": 0}
    data["start_from"] = {"run": str(run.resolve()), "checkpoint": checkpoint}
    data.pop("expect", None)
    return data


@as_named
def draw_front(found: Patterns, chosen: Pattern) -> str:
    """Score by time to adapt, a point for each pattern; the front is a line."""
    figure, drawn = axes("ms to adapt", found.metric, size=(6.4, 3.8))
    front = found.front()
    _points(drawn, found.tried, LIGHT_BLUE, "tried", marker=".")
    drawn.plot([1000 * p.time for p in front], [p.score for p in front], color=BLUE, label="front")
    _points(drawn, [found.full], GREY, f"full: {found.full.title()}", marker="s")
    _points(drawn, [chosen], ORANGE, f"chosen: {chosen.title()}", marker="o")
    if found.metric != "accuracy":
        drawn.invert_yaxis()
    drawn.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return svg(figure)


def _points(drawn: Any, patterns: Iterable[Pattern], colour: str, name: str, marker: str) -> None:
    at = [(1000 * pattern.time, pattern.score) for pattern in patterns]
    drawn.plot(*zip(*at, strict=True), marker, color=colour, label=label(name))


def pattern_lines(found: Patterns, chosen: Pattern) -> list[str]:
    """The front and what was chosen, for a terminal."""

    def told(pattern: Pattern) -> str:
        lost, interval = found.lost(pattern)
        return (
            f"{pattern.title()}: {found.metric} {pattern.score:.4f}, lost {lost:+.4f} ± "
            f"{interval:.4f}, {1000 * pattern.time:.1f} ms, {found.speed_up(pattern):.2f} times "
            "as fast"
        )

    front = [f"  {told(pattern)}" for pattern in found.front()]
    head = f"full: {told(found.full)}"
    return [head, f"front of {len(found.tried)} patterns:", *front, f"chosen: {told(chosen)}"]

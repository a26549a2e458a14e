"""The report of a sweep: tables, heat maps and mean ranks in one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsl_core.reporting import figures
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.sweep import (
    ESTIMATE,
    RowResult,
    SweepResult,
    column,
    difference_table,
    further_columns,
    table,
)
from fsl_core.reporting.sweep_paper import learning_curves
from fsl_core.sweeping.jobs import Job
from fsl_core.text import name_of


def write_sweep_report(
    path: Path,
    result: SweepResult,
    jobs: Sequence[Job],
    recipe: Path,
    overrides: Sequence[str] = (),
    template: str = "sweep.html",
    **more: Any,
) -> Path:
    """Write the page of a sweep beside its `runs/`; returns its path.

    overrides: what `-s` changed of the recipe.    more: what another template shows.
    """
    finished = [job for job in jobs if job.state == "finished"]
    links = {job.cell.title: f"runs/{job.directory.name}/report.html" for job in finished}
    plan = result.plan
    settings = dict.fromkeys(row.setting for row in plan.rows)
    changed = [f"# -s {override}" for override in overrides]
    return write_page(
        path,
        template,
        name=name_of(recipe),
        metric=result.metric,
        axes=[column(axis) for axis in plan.varying],
        told_once=result.told_once(),
        telling=result.telling_columns(),
        further=further_columns(result),
        sections=[_section(result, setting, links) for setting in settings],
        many_seeds=any(len(item.runs) > 1 for item in result.rows),
        ranking=_ranking(result),
        failed=[
            (job.cell.title, job.error or job.state) for job in jobs if job.state != "finished"
        ],
        runs=len(jobs),
        recipe="\n".join([recipe.read_text(encoding="utf-8").rstrip(), *changed]),
        **more,
    )


def _section(result: SweepResult, setting: int, links: dict[str, str]) -> dict[str, Any]:
    """What the page says about the rows of one setting."""
    plan, rows = result.plan, table(result)
    own = [i for i, row in enumerate(plan.rows) if row.setting == setting]
    pairs = zip(difference_table(result), result.differences, strict=True)
    return {
        "title": plan.setting_title(setting),
        "rows": [_shown(rows[i], result.rows[i], links) for i in own],
        "differences": [told for told, of in pairs if of.row.setting == setting],
        "baseline": plan.row_title(plan.rows[plan.rows[own[0]].baseline]),
        "maps": _heat_maps(result, setting),
        "curves": _curves(result, setting),
    }


def _curves(result: SweepResult, setting: int) -> list[tuple[str, str]]:
    found = learning_curves(result, setting)
    return [found] if found else []


def _shown(row: dict[str, Any], item: RowResult, links: dict[str, str]) -> dict[str, Any]:
    norm = item.judging.norm_in_short if item.judging else ""
    return {**row, "norm": norm, "links": _links(item, links)}


def _links(item: RowResult, links: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (str(c.recipe.sections.seed), links[c.title]) for c in item.row.cells if c.title in links
    ]


def _heat_maps(result: SweepResult, setting: int) -> list[tuple[str, str]]:
    """(caption, SVG) for two axes, one for each value of the others.

    Those of adapters, hypergradients and weightings come first, if rows differ in them.
    """
    first = [
        axis for axis in ("adapter", ESTIMATE, "outer.weighting") if axis in result.plan.varying
    ]
    axes = [*first, *(axis for axis in result.plan.varying if axis not in first)]
    if len(axes) < 2:
        return []
    groups: dict[tuple[str, ...], list[RowResult]] = {}
    for item in result.of_setting(setting):
        others = tuple(f"{axis} {item.row.labels[axis]}" for axis in axes[2:])
        groups.setdefault(others, []).append(item)
    better = "higher" if result.higher_is_better else "lower"
    caption = f"{result.metric} over seeds, {axes[0]} by {axes[1]}; light is better ({better})"
    return [
        (", ".join([caption, *others]), _heat_map(result, items, axes))
        for others, items in groups.items()
    ]


def _heat_map(result: SweepResult, items: list[RowResult], axes: list[str]) -> str:
    of_row, of_column = axes[:2]
    rows = list(dict.fromkeys(item.row.labels[of_row] for item in items))
    columns = list(dict.fromkeys(item.row.labels[of_column] for item in items))
    values = np.full((len(rows), len(columns)), np.nan)
    for item in items:
        if item.runs:
            i, j = rows.index(item.row.labels[of_row]), columns.index(item.row.labels[of_column])
            values[i, j] = item.score
    return figures.heat_map(values, rows, columns, result.higher_is_better)


def _ranking(result: SweepResult) -> dict[str, Any]:
    """The line about mean ranks, and their figure if Friedman's test finds a difference."""
    ranking: dict[str, Any] = {"told": result.ranks_told()}
    try:
        titles, found = result.ranking()
    except ValueError:
        return ranking
    if found.p < 0.05:
        drawn = (titles, found.ranks, found.groups(), found.critical_difference)
        ranking["figure"] = figures.critical_difference(*drawn)
    return ranking

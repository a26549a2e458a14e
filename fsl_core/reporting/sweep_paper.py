"""A sweep as a table for a paper, and its rows' curves of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsl_core.reporting import figures
from fsl_core.reporting.papers import PaperTable
from fsl_core.reporting.scores import chance_of
from fsl_core.reporting.sweep import RowResult, SweepResult
from fsl_core.runs.files import METRICS, is_file, parse_record, reading

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def paper_table(result: SweepResult) -> PaperTable:
    """A line for each method and a column for each setting, with its score and interval.

    Intervals are over seeds and episodes together where there are several seeds. Bold is the best
    of a column, and what is not worse beyond the paired interval.
    """
    axes, settings = list(result.plan.varying), _settings(result)
    methods = list(dict.fromkeys(result.plan.row_title(item.row) for item in result.rows))
    rows, bold = [], set[tuple[int, int]]()
    for i, method in enumerate(methods):
        items = [item for item in result.rows if result.plan.row_title(item.row) == method]
        cells = [items[0].row.labels[axis] for axis in axes]
        for j, setting in enumerate(settings):
            item = next((item for item in items if item.row.setting == setting), None)
            cells.append(_cell(item) if item else "")
            if item is not None and item.best:
                bold.add((i, len(axes) + j))
        rows.append(cells)
    titles = [result.plan.setting_title(setting) or result.metric for setting in settings]
    return PaperTable([*axes, *titles], rows, bold)


def _settings(result: SweepResult) -> list[int]:
    return list(dict.fromkeys(row.setting for row in result.plan.rows))


def _cell(item: RowResult) -> str:
    if not item.runs:
        return "failed"
    both = item.over_seeds
    interval = both.interval if both else next(iter(item.runs.values())).result["interval"]
    return f"{item.score:.3f} ± {interval:.3f}"


def learning_curves(result: SweepResult, setting: int) -> tuple[str, str] | None:
    """(caption, SVG) of the curves of training of all rows of a setting; None if none was trained.

    They are of validation if every row has it, else running means of training episodes.
    """
    items = [item for item in result.of_setting(setting) if item.runs]
    for split in ("validation", "training"):
        curves = {result.plan.row_title(item.row): _curve(result, item, split) for item in items}
        drawn = {title: curve for title, curve in curves.items() if curve[0]}
        if drawn and (len(drawn) == len(curves) or split == "training"):
            caption = f"{result.metric} of {split} episodes over training, mean over seeds"
            chances = {chance_of(r.directory, r.result) for i in items for r in i.runs.values()}
            chance = chances.pop() if len(chances) == 1 else None
            return caption, figures.curves(drawn, result.metric, chance)
    return None


def _curve(result: SweepResult, item: RowResult, split: str) -> Curve:
    """The mean over seeds, at the steps that all of them have."""
    each = [_records(run.directory, result.metric, split) for run in item.runs.values()]
    steps = sorted(set.intersection(*(set(records) for records in each)))
    return steps, [float(np.mean([records[step] for records in each])) for step in steps]


def _records(directory: Path, metric: str, split: str) -> dict[int, float]:
    path = directory / METRICS
    if not is_file(path):
        return {}
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    records = [record for line in lines if metric in (record := parse_record(line))]
    if split == "validation":
        return {r["step"]: r[metric] for r in records if r.get("split") == split}
    return _smoothed([r for r in records if "split" not in r], metric)


def _smoothed(records: Sequence[dict[str, float]], metric: str) -> dict[int, float]:
    values = np.array([record[metric] for record in records])
    means = figures.running_mean(values, max(1, len(values) // 20)) if len(values) else values
    return {int(r["step"]): float(mean) for r, mean in zip(records, means, strict=True)}

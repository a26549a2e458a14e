"""Figures of a finished run as PNG files: what trackers show beside its numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fsl_core.engine.confusion import per_class
from fsl_core.errors import DataError
from fsl_core.hooks.run_view import RunView
from fsl_core.reporting.confusion import WHOLE, read_confusion
from fsl_core.reporting.figures import (
    GREY,
    ORANGE,
    as_named,
    axes,
    draw_curve,
    draw_histogram,
    draw_inner_steps,
    label,
    png,
)
from fsl_core.reporting.mosaics import (
    ClassRow,
    class_rows,
    draw_function,
    predicted_worst,
    why_not_shown,
)
from fsl_core.reporting.scores import chance_of, scores_after_steps
from fsl_core.runs.files import EPISODES, read_result

WORST = 3
"""Episodes drawn."""


@as_named
def run_figures(run: RunView) -> dict[str, bytes]:
    """PNG files of a finished run by name, for observers in `fsl_run_finished`.

    `loss`, `accuracy` (or `mse`): curves of training and validation. `episodes`: the score of each
    test episode. `inner-steps`: the score after each inner step. `confusion`: what was taken for
    what. `worst-episodes`: support, queries and mistakes of the test episodes with the worst
    scores, predicted again. Those that a run does not have are left out; a run without a directory
    has none.
    """
    return {name: png(figure) for name, figure in _drawn(run)} if run.directory else {}


def _drawn(run: RunView) -> Iterator[tuple[str, Figure]]:
    assert run.directory is not None
    result, records = read_result(run.directory), run.metrics()
    metric, scores = result["metric"], _scores(run, result["metric"])
    training = [record for record in records if "split" not in record]
    validation = [record for record in records if record.get("split") == "validation"]
    chance = chance_of(run.directory, result)
    if training:
        yield "loss", draw_curve(training, [], "loss")
        yield metric, draw_curve(training, validation, metric, chance)
    yield "episodes", draw_histogram(scores, metric, chance)
    if steps := scores_after_steps(result):
        yield "inner-steps", draw_inner_steps(steps, metric, chance)
    if drawn := _confusion(run):
        yield "confusion", drawn
    if drawn := _worst(run, scores):
        yield "worst-episodes", drawn


def _scores(run: RunView, metric: str) -> list[float]:
    assert run.directory is not None
    text = (run.directory / EPISODES).read_text(encoding="utf-8")
    return [float(row[metric]) for row in csv.DictReader(io.StringIO(text))]


def _confusion(run: RunView) -> Figure | None:
    """Shares of the queries of each class; of many classes those that were mistaken most often."""
    assert run.directory is not None
    counts = read_confusion(run.directory)
    if not counts:
        return None
    totals = {name: row["queries"] for name, row in per_class(counts).items()}
    names = list(totals)
    if len(names) > WHOLE:
        mistaken = sorted((pair for pair in counts if pair[0] != pair[1]), key=counts.__getitem__)
        often = dict.fromkeys(name for pair in reversed(mistaken) for name in pair)
        names = [name for name in often if name in totals][:WHOLE]
    shares = [[counts.get((a, b), 0) / totals[a] for b in names] for a in names]
    figure, drawn = axes("predicted", "class", size=(2.5 + 0.22 * len(names),) * 2)
    drawn.imshow(np.array(shares), cmap="Blues", vmin=0, vmax=1)
    drawn.set_xticks(range(len(names)), [*map(label, names)], rotation=90, fontsize=7)
    drawn.set_yticks(range(len(names)), [*map(label, names)], fontsize=7)
    return figure


def _worst(run: RunView, scores: Sequence[float]) -> Figure | None:
    """The worst episodes one below the other; None if they cannot be drawn."""
    task = run.test_task
    if why_not_shown(task):
        return None
    try:
        worst = list(predicted_worst(run, scores, WORST))
    except DataError:
        return None
    rows = task.n_way if task.kind == "classification" else 6
    figure = Figure(figsize=(7.2, len(worst) * (0.6 + 0.45 * rows)), layout="constrained")
    parts: Any = figure.subplots(len(worst), 1, squeeze=False)[:, 0]
    for drawn, one in zip(parts, worst, strict=True):
        told = f"episode {one.index}: {task.metric} {scores[one.index]:.3f}"
        drawn.set_title(told, color=GREY)
        if task.kind == "regression":
            draw_function(drawn, one.episode, one.prediction)
        else:
            _draw_rows(drawn, class_rows(one))
    return figure


def _draw_rows(drawn: Axes, rows: Sequence[ClassRow]) -> None:
    """A row of pictures for each class: support at the left, queries at the right.

    Queries that were mistaken have a frame and the number of the class they were taken for.
    """
    beyond = 1 + max(len(row.support) for row in rows)
    width = beyond + max(len(row.queries) for row in rows)
    placed = [
        (x, y, picture)
        for y, row in enumerate(rows)
        for x, picture in [*enumerate(row.support), *enumerate(row.queries, beyond)]
    ]
    size = np.array(placed[0][2].image.size[::-1])  # of every picture
    cell = np.ceil(size / 0.92).astype(int)
    # One image: matplotlib takes a millisecond or two for each that it draws.
    whole = np.full((*(cell * [len(rows), width]), 3), 255, dtype=np.uint8)
    high, wide = size / cell
    for x, y, picture in placed:
        top, left = cell * [y, x]
        pixels = np.asarray(picture.image.convert("RGB"))
        whole[top : top + size[0], left : left + size[1]] = pixels
        if picture.predicted is not None:
            corner, told = (x, y), str(picture.predicted)
            frame = Rectangle(corner, wide, high, edgecolor=ORANGE, fill=False, linewidth=1.5)
            drawn.add_patch(frame)
            drawn.text(x + 0.05, y + 0.05, told, color=ORANGE, fontsize=7, va="top")
    drawn.imshow(whole, extent=(0, width, len(rows), 0))
    # In the middle it would get too little room for the names: that is measured from the box.
    drawn.set(xlim=(0, width), ylim=(len(rows), 0), xticks=[], aspect="equal", anchor="E")
    drawn.set_yticks([i + 0.46 for i in range(len(rows))], [label(row.name) for row in rows])
    for spine in drawn.spines.values():
        spine.set_visible(False)

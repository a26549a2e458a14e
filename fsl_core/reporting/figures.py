"""Figures as SVG text, readable on a light and on a dark page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fsl_core.text import printable

GREY = "#888888"
LIGHT_BLUE, BLUE, ORANGE = "#4c9be8", "#1f6fc4", "#e07b39"
GAP = "\u00a0\u00a0"  # a browser leaves out plain spaces at the end of a text
_ROOM = (1.0, 0.5, 0.3, 0.25)
"""Inches left of axes, below, right and above: for eight digits, and for a common exponent."""
LABEL = 32  # characters of a name in a figure; the tables on its page have it in full

as_named = rc_context(
    {"text.parse_math": False, "text.usetex": False, "svg.fonttype": "none", "font.size": 10}
)
"""Names are drawn as they are, in one size: no dollar begins a formula, and a page has fonts.

It holds while a figure is made and while it is drawn: labels of ticks are made late.
"""


def axes(
    xlabel: str, ylabel: str, size: tuple[float, float] = (5.2, 3.1), *, numbers: bool = False
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; size in inches.

    numbers: the ticks of both are numbers, for which the room is known. Every other text has to be
        measured first, which takes five times as long as drawing.
    """
    figure = Figure(figsize=size, layout=None if numbers else "constrained")
    if numbers:
        (left, bottom, right, top), (width, height) = _ROOM, size
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    drawn = figure.add_subplot()
    style(drawn, xlabel, ylabel)
    return figure, drawn


def style(drawn: Axes, xlabel: str, ylabel: str) -> None:
    """Labels and lines of axes in grey, without a ground."""
    drawn.set_xlabel(xlabel, color=GREY)
    drawn.set_ylabel(ylabel, color=GREY)
    drawn.tick_params(colors=GREY)
    drawn.patch.set_alpha(0)
    for spine in drawn.spines.values():
        spine.set_color(GREY)


def svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():  # of letters to measure; the page draws them with its own font
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def label(name: str) -> str:
    """A name as a figure shows it: harmless, and short enough to leave room for what is drawn.

    >>> label("a" * 30 + "b" * 30)
    'aaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbb'
    """
    name = printable(name)
    return name if len(name) <= LABEL else f"{name[: LABEL - 12]}…{name[-11:]}"


def png(figure: Figure) -> bytes:
    """A file of the figure, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


@as_named
def curve(
    training: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    key: str,
    chance: float | None = None,
) -> str:
    return svg(draw_curve(training, validation, key, chance))


def draw_curve(
    training: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    key: str,
    chance: float | None = None,
) -> Figure:
    """`key` of the records of training and of validation.

    Training is drawn with a running mean over a fiftieth of its records, validation with its
    interval.
    """
    figure, drawn = axes("outer step", key, numbers=True)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    training = [record for record in training if key in record]
    steps, values = [r["step"] for r in training], np.array([r[key] for r in training])
    if not validation:
        thin = max(1, len(values) // 2000)
        drawn.plot(steps[::thin], values[::thin], ".", color=LIGHT_BLUE, markersize=2, alpha=0.4)
    drawn.plot(steps, running_mean(values, max(1, len(values) // 50)), color=BLUE, label="training")
    if validation:
        at, means, halves = ([r[k] for r in validation] for k in ("step", key, "interval"))
        drawn.errorbar(
            at, means, halves, fmt="o-", color=ORANGE, markersize=3, capsize=2, label="validation"
        )
    mark_chance(drawn.axhline, chance)
    if validation or chance is not None:
        drawn.legend(frameon=False, labelcolor=GREY)
    return figure


def mark_chance(line: Callable[..., Any], chance: float | None) -> None:
    """A dashed line where guesses would be; `line` is `axhline` or `axvline` of the axes."""
    if chance is not None:
        line(chance, color=GREY, linestyle="--", linewidth=1, label=f"chance {chance:.2g}")


@as_named
def curves(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    key: str,
    chance: float | None = None,
) -> str:
    """Lines of (steps, values) by name, one over the other."""
    figure, drawn = axes("outer step", key, size=(5.2, 3.1 + 0.2 * len(series)))
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for i, (name, (steps, values)) in enumerate(series.items()):
        style = ("-", "--", ":", "-.")[i // 10 % 4]  # matplotlib has ten colours
        drawn.plot(steps, values, style, marker="." if len(steps) < 30 else "", label=label(name))
    mark_chance(drawn.axhline, chance)
    figure.legend(loc="outside lower center", frameon=False, labelcolor=GREY, fontsize=9)
    return svg(figure)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it: `window` values, or fewer at the beginning.

    >>> running_mean(np.array([1.0, 3.0, 5.0]), 2)
    array([1., 2., 4.])
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


@as_named
def histogram(scores: Sequence[float], metric: str, chance: float | None = None) -> str:
    return svg(draw_histogram(scores, metric, chance))


def draw_histogram(scores: Sequence[float], metric: str, chance: float | None = None) -> Figure:
    figure, drawn = axes(metric, "episodes", numbers=True)
    drawn.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawn.hist(scores, bins=bins_of(scores, metric).tolist(), rwidth=0.92, color=LIGHT_BLUE)
    mark_chance(drawn.axvline, chance)
    if chance is not None:
        drawn.legend(frameon=False, labelcolor=GREY)
    return figure


def bins_of(scores: Sequence[float], metric: str) -> np.ndarray:
    """Edges of at most 30 bins. Those of accuracies hold as many possible values each.

    With 4 queries an accuracy is a multiple of 1 / 4:

    >>> bins_of([0.25, 0.75, 1.0], "accuracy")
    array([0.125, 0.375, 0.625, 0.875, 1.125])
    """
    values = np.asarray(scores)
    queries = _queries_behind(values) if metric == "accuracy" else 0
    if not queries:
        return np.histogram_bin_edges(values, bins=min(30, max(5, len(set(scores)))))
    right = np.rint(values * queries)
    low, high = right.min(), right.max()
    width = np.ceil((high - low + 1) / 30)
    return (np.arange(low, high + width + 1, width) - 0.5) / queries


def _queries_behind(accuracies: np.ndarray) -> int:
    """The fewest queries that can give these accuracies; 0 for none up to a thousand.

    If all are alike, enough for a bin that is narrow.
    """
    least = 20 if np.ptp(accuracies) == 0 else 1
    for queries in range(least, 1001):
        right = accuracies * queries
        if np.abs(right - np.rint(right)).max() < 1e-3:
            return queries
    return 0


@as_named
def inner_steps(scores: Sequence[float], metric: str, chance: float | None = None) -> str:
    return svg(draw_inner_steps(scores, metric, chance))


def draw_inner_steps(scores: Sequence[float], metric: str, chance: float | None = None) -> Figure:
    figure, drawn = axes("inner steps", metric, numbers=True)
    drawn.plot(range(len(scores)), scores, "o-", color=BLUE)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    mark_chance(drawn.axhline, chance)
    if chance is not None:
        drawn.legend(frameon=False, labelcolor=GREY)
    return figure


@as_named
def scatter(first: np.ndarray, second: np.ndarray, labels: tuple[str, str]) -> str:
    """A point per episode, larger if several have the same pair of scores.

    On the diagonal both scores are equal.
    """
    figure, drawn = axes(label(labels[0]), label(labels[1]), size=(4.6, 4.4))
    pairs, counts = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    ends = [min(first.min(), second.min()), max(first.max(), second.max())]
    drawn.plot(ends, ends, "--", color=GREY, linewidth=1)
    drawn.scatter(
        pairs[:, 0], pairs[:, 1], s=12 * counts, color=LIGHT_BLUE, alpha=0.6, linewidths=0
    )
    drawn.set_aspect("equal", "datalim")
    return svg(figure)


@as_named
def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], higher_is_better: bool
) -> str:
    """Values (n_rows, n_columns) as colours and numbers, light for the best.

    A cell without a result is nan.
    """
    figure, drawn = axes("", "", size=(2.0 + 0.95 * len(columns), 1.3 + 0.42 * len(rows)))
    shown = np.ma.masked_invalid(values if higher_is_better else -values)
    image = drawn.imshow(shown, cmap="viridis", aspect="auto")
    drawn.set_xticks(range(len(columns)), [*map(label, columns)], rotation=25, ha="right")
    drawn.set_yticks(range(len(rows)), [*map(label, rows)])
    for (i, j), value in np.ndenumerate(values):
        text, colour = "-", GREY
        if np.isfinite(value):
            text = f"{value:.3f}"
            colour = "black" if np.asarray(image.norm(shown[i, j])) > 0.6 else "white"
        drawn.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    return svg(figure)


@as_named
def critical_difference(
    labels: Sequence[str], ranks: np.ndarray, groups: Sequence[tuple[int, int]], length: float
) -> str:
    """A point for each mean rank, best on top; narrow enough for a telephone.

    Bars at the right join methods whose mean ranks differ by less than `length`, which is drawn
    below them.
    """
    order, high = np.argsort(ranks, kind="stable"), max(len(labels), 2)
    figure, drawn = axes("mean rank", "", size=(4.6, 1.3 + 0.3 * len(labels)))
    drawn.set_yticks(range(len(order)), [label(labels[i]) for i in order])
    drawn.set_ylim(len(order) + 0.3, -0.8)
    drawn.set_xlim(0.8, high + 0.3 + 0.2 * len(groups))
    drawn.set_xticks(range(1, high + 1, max(1, high // 8)))
    drawn.hlines(range(len(order)), 1, ranks[order], color=GREY, linewidth=0.8)
    drawn.plot(ranks[order], range(len(order)), "o", color=BLUE)
    for place, i in enumerate(order):
        drawn.text(ranks[i], place - 0.2, f"{ranks[i]:.2f}", ha="center", va="bottom", color=GREY)
    for n, (first, last) in enumerate(groups):
        at = high + 0.3 + 0.2 * n
        drawn.plot([at, at], [first - 0.2, last + 0.2], color=BLUE, linewidth=3)
    told = f"{GAP}critical difference {length:.2f}"
    drawn.plot([1, 1 + length], [len(order) - 0.2] * 2, color=ORANGE, linewidth=2)
    drawn.text(1 + length, len(order) - 0.2, told, va="center", color=GREY, fontsize=8)
    return svg(figure)


@as_named
def trials(
    numbers: Sequence[int], scores: Sequence[float], name: str, higher_is_better: bool
) -> str:
    """Scores in the order of trials, and a line of the best so far."""
    figure, drawn = axes("trial", name, numbers=True)
    best = (np.maximum if higher_is_better else np.minimum).accumulate(np.array(scores))
    drawn.step(numbers, best, where="post", color=ORANGE)
    drawn.plot(numbers, scores, "o", color=BLUE, markersize=4)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return svg(figure)


@as_named
def over(values: Sequence[Any], scores: Sequence[float], key: str, name: str, log: bool) -> str:
    """A point for each trial: its score over the value of one parameter. Texts have no order."""
    figure, drawn = axes(label(key), name)
    if log:
        drawn.set_xscale("log")
        # matplotlib writes powers of ten as mathematics, which `as_named` turns off
        drawn.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        drawn.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        drawn.xaxis.set_minor_locator(NullLocator())
    elif all(isinstance(value, int) for value in values):
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    texts = [label(value) if isinstance(value, str) else value for value in values]
    drawn.plot(texts, scores, "o", color=BLUE, markersize=4)
    return svg(figure)

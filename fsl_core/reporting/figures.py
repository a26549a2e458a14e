"""Figures as SVG text, readable on a light and on a dark page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
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
LABEL = 32  # characters of a name in a figure; the tables on its page have it in full

as_named = rc_context({"text.parse_math": False, "text.usetex": False, "svg.fonttype": "none"})
"""Names are drawn as they are: no dollar begins a formula, and the page's reader finds a font.

It holds while a figure is made and while it is drawn: labels of ticks are made late.
"""


def axes(xlabel: str, ylabel: str, size: tuple[float, float] = (5.2, 3.1)) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; size in inches."""
    figure = Figure(figsize=size, layout="constrained")
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
    training: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], key: str
) -> str:
    return svg(draw_curve(training, validation, key))


def draw_curve(
    training: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], key: str
) -> Figure:
    """`key` of the records of training and of validation.

    Training is drawn with a running mean over a fiftieth of its records, validation with its
    interval.
    """
    figure, drawn = axes("outer step", key)
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
        drawn.legend(frameon=False, labelcolor=GREY)
    return figure


@as_named
def curves(series: Mapping[str, tuple[Sequence[int], Sequence[float]]], key: str) -> str:
    """Lines of (steps, values) by name, one over the other."""
    figure, drawn = axes("outer step", key, size=(7.2, 3.6))
    for i, (name, (steps, values)) in enumerate(series.items()):
        style = ("-", "--", ":", "-.")[i // 10 % 4]  # matplotlib has ten colours
        drawn.plot(steps, values, style, marker="." if len(steps) < 30 else "", label=label(name))
    beside = (1.0, 0.5)
    drawn.legend(
        loc="center left", bbox_to_anchor=beside, frameon=False, labelcolor=GREY, fontsize=8
    )
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
def histogram(scores: Sequence[float], metric: str) -> str:
    return svg(draw_histogram(scores, metric))


def draw_histogram(scores: Sequence[float], metric: str) -> Figure:
    figure, drawn = axes(metric, "episodes")
    drawn.hist(scores, bins=min(30, max(5, len(set(scores)))), color=LIGHT_BLUE)
    return figure


@as_named
def inner_steps(scores: Sequence[float], metric: str) -> str:
    return svg(draw_inner_steps(scores, metric))


def draw_inner_steps(scores: Sequence[float], metric: str) -> Figure:
    figure, drawn = axes("inner steps", metric)
    drawn.plot(range(len(scores)), scores, "o-", color=BLUE)
    drawn.set_xticks(range(len(scores)))
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
    """Mean ranks on a line, best at the left.

    Bars join methods whose mean ranks differ by less than `length`.
    """
    half = (len(labels) + 1) // 2
    low, high = 1, max(len(labels), 2)
    depth = 0.9 + 0.28 * len(groups)
    figure, drawn = axes("", "", size=(8.6, 1.2 + 0.22 * len(groups) + 0.26 * half))
    drawn.set_axis_off()
    drawn.set_xlim(low - 0.45 * (high - low), high + 0.45 * (high - low))
    drawn.set_ylim(depth + 0.55 * half + 0.2, -1.5)
    _draw_scale(drawn, low, high, length)
    _draw_methods(drawn, labels, ranks, depth, half, (low, high))
    ordered = np.sort(ranks, kind="stable")
    for n, (first, last) in enumerate(groups):
        ends, height = [ordered[first], ordered[last]], 0.35 + 0.28 * n
        drawn.plot(ends, [height] * 2, color=BLUE, linewidth=3, solid_capstyle="round")
    return svg(figure)


def _draw_scale(drawn: Axes, low: int, high: int, length: float) -> None:
    """The line of ranks with its ticks, and the critical difference above it."""
    drawn.plot([low, high], [0, 0], color=GREY, linewidth=1.2)
    for tick in range(low, high + 1, max(1, (high - low) // 12)):
        drawn.plot([tick, tick], [0, -0.18], color=GREY, linewidth=1.2)
        drawn.text(tick, -0.25, str(tick), ha="center", va="bottom", color=GREY, fontsize=8)
    drawn.plot([low, low + length], [-0.95, -0.95], color=ORANGE, linewidth=2)
    told = f"{GAP}critical difference {length:.2f}"
    drawn.text(low + length, -0.95, told, va="center", color=GREY, fontsize=8)


def _draw_methods(
    drawn: Axes,
    labels: Sequence[str],
    ranks: np.ndarray,
    depth: float,
    half: int,
    scale: tuple[int, int],
) -> None:
    """A line from each rank to the method's name: the better half at the left, best on top."""
    k, (low, high) = len(labels), scale
    for position, i in enumerate(np.argsort(ranks, kind="stable")):
        left = position < half
        y = depth + 0.55 * (position if left else k - 1 - position)
        edge = low - 0.04 * (high - low) if left else high + 0.04 * (high - low)
        drawn.plot([ranks[i], ranks[i], edge], [0, y, y], color=GREY, linewidth=0.8)
        name = label(labels[i])
        text = f"{name}{GAP}{ranks[i]:.2f}{GAP}" if left else f"{GAP}{ranks[i]:.2f}{GAP}{name}"
        side = "right" if left else "left"
        drawn.text(edge, y, text, ha=side, va="center", color=GREY, fontsize=9)


@as_named
def trials(
    numbers: Sequence[int], scores: Sequence[float], name: str, higher_is_better: bool
) -> str:
    """Scores in the order of trials, and a line of the best so far."""
    figure, drawn = axes("trial", name)
    best = (np.maximum if higher_is_better else np.minimum).accumulate(np.array(scores))
    drawn.step(numbers, best, where="post", color=ORANGE)
    drawn.plot(numbers, scores, "o", color=BLUE, markersize=4)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    texts = [label(value) if isinstance(value, str) else value for value in values]
    drawn.plot(texts, scores, "o", color=BLUE, markersize=4)
    return svg(figure)

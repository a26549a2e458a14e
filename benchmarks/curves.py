"""Learning curves of kept runs, in one figure beside their table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.kept import RUNS, Row
from fsl_core.reporting import figures
from fsl_core.runs.files import METRICS

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""Steps and values by the name of a line."""


def file_of(patterns: Sequence[str]) -> str:
    """The name of the figure that a page asks for by these patterns.

    >>> file_of(["omniglot-*-finn"])
    'curves-omniglot-finn.svg'
    """
    return f"curves-{re.sub(r'[^a-z0-9]+', '-', ' '.join(patterns)).strip('-')}.svg"


def drawn(rows: Sequence[Row], file: Path) -> str:
    """The text of the figure. A file that shows these numbers stays as it is.

    So another version of matplotlib, which draws them otherwise, changes nothing.
    """
    accuracy = rows[0].first.metric == "accuracy"
    shown = {name: series(RUNS / name, row.first.metric) for row in rows for name in row.names}
    numbers = json.dumps([accuracy, shown]).encode()
    told = f"<!-- of {hashlib.blake2b(numbers, digest_size=8).hexdigest()} -->\n"
    if file.is_file() and (text := file.read_text(encoding="utf-8")).startswith(told):
        return text
    return f"{told}{_svg(shown, accuracy)}"


def series(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps, and of an accuracy the share of training queries that are wrong: its end is near 1."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    records = [record for line in lines if "split" not in (record := json.loads(line))]
    values = [1 - r[metric] if metric == "accuracy" else r[metric] for r in records]
    return [r["step"] for r in records], values


@figures.as_named
def _svg(shown: Series, accuracy: bool) -> str:
    label = "training queries that are wrong" if accuracy else "mean squared error in training"
    with mpl.rc_context({"svg.hashsalt": "fsl-core"}):
        figure, axes = figures.axes("outer step", label, size=(6.4, 3.4 + 0.2 * len(shown)))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{100 * y:g} %" if accuracy else f"{y:g}")
        )
        for name, (steps, values) in shown.items():
            axes.plot(steps, values, label=name)
        figure.legend(loc="outside lower center", frameon=False, labelcolor=figures.GREY)
        return figures.svg(figure)

"""What `fsl check --data` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fsl_core.data.source import SplitContents
    from fsl_core.reporting.data_report import DataReport

LINES = 10
"""Of a kind; the option --list prints all."""


def print_report(report: DataReport, whole: bool) -> None:
    """Classes, sizes and what may be wrong.    whole: every line, though there are many."""
    from fsl_core.text import printable

    for split, contents in report.contents.items():
        typer.echo(f"{split}: {_summary(report, split, contents)}")
        names = [f"{printable(name)} {count}" for name, count in contents.classes.items()]
        if names:
            limit = len(names) if whole else 5 * LINES
            typer.echo(f"  {', '.join(names[:limit])}{_more(len(names) - limit, 'classes')}")
    for reason, count in sorted(Counter(item.reason for item in report.passed_over).items()):
        typer.echo(f"passed over: {count} {reason}")
        items = [item for item in report.passed_over if item.reason == reason]
        _lines([str(item) if item.detail else printable(item.path) for item in items], whole)
    if report.in_many_splits:
        typer.echo(f"classes in more than one split: {len(report.in_many_splits)}")
        _lines([f"{printable(n)}: {', '.join(s)}" for n, s in report.in_many_splits.items()], whole)
    if report.identical:
        where = "equal pictures in more than one class or split"
        typer.echo(f"{where}: {len(report.identical)}")
        _lines([" = ".join(map(str, group)) for group in report.identical], whole)
    for split, few in report.too_small.items():
        task, needed = report.wanted[split], f"need {report.needed[split]}"
        if task.varies:
            needed = f"episodes of {task} {needed}"
        else:
            needed = f"n_shot {task.n_shot} and n_query {task.n_query} {needed}"
        typer.echo(f"{split}: {len(few)} classes with too few items; {needed}")
        _lines([f"{printable(name)}: {count}" for name, count in few.items()], whole)


def _summary(report: DataReport, split: str, contents: SplitContents) -> str:
    if not contents.classes:
        return "episodes are drawn, no data is read"
    counts = contents.classes.values()
    least, most = min(counts), max(counts)
    each = f"{least} of each class" if least == most else f"{least} to {most} of a class"
    parts = [f"{len(counts)} classes, {sum(counts)} items, {each}"]
    if sizes := report.sizes(split):
        small, large = (f"{width}x{height}" for width, height in sizes)
        parts.append(f"pictures of {small}" + (f" to {large}" if small != large else ""))
    return "; ".join(parts)


def _lines(lines: Sequence[str], whole: bool) -> None:
    limit = len(lines) if whole else LINES
    for line in lines[:limit]:
        typer.echo(f"  {line}")
    if more := _more(len(lines) - limit, "more"):
        typer.echo(f" {more}")


def _more(left: int, what: str) -> str:
    return f" … and {left} {what} (--list)" if left > 0 else ""

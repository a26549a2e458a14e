"""Finished sweeps as tables of a page: every adapter under every weighting, tested in pairs.

`fsl sweep` writes `sweep.csv` and `differences.csv`. Where both lie in docs/results/sweeps/<name>/,
`make results` makes a table of them between lines such as `<!-- results: sweep glyphs-more -->`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.kept import ROOT

SWEEPS = ROOT / "docs" / "results" / "sweeps"
SCORES, PAIRS = "sweep.csv", "differences.csv"
MEASURED = {"interval", "interval_seeds", "seeds"}


def table(folder: Path) -> str:
    """The Markdown of a sweep that is kept in a folder with the name of its recipe.

    SystemExit names a folder without the two tables.
    """
    if missing := [name for name in (SCORES, PAIRS) if not (folder / name).is_file()]:
        raise SystemExit(f"results: sweep {folder.name}: no {', '.join(missing)} in {folder}")
    return "\n".join(_lines(folder))


def _lines(folder: Path) -> Iterator[str]:
    rows, differences = _read(folder / SCORES), _read(folder / PAIRS)
    shared = [column for column in rows[0] if column in differences[0]]
    axes = [column for column in shared if column not in {"adapter", *MEASURED}]
    judged = {_labels(difference, ["adapter", *axes]): difference for difference in differences}
    columns = list(dict.fromkeys(_labels(row, axes) for row in rows))
    seeds = max((row["seeds"].split() for row in rows), key=len)
    plural = "s" if len(seeds) > 1 else ""
    command = f"fsl sweep recipes/matrix/{folder.name}.yaml"
    yield f"`{command}`, seed{plural} {', '.join(seeds)}. Columns: {', '.join(axes)}."
    yield from _judging(rows)
    yield from (
        "",
        "| adapter | " + " | ".join(map(", ".join, columns)) + " | adaptation |",
        "|" + "---|" * (len(columns) + 2),
    )
    for adapter in dict.fromkeys(row["adapter"] for row in rows):
        of_adapter = {_labels(row, axes): row for row in rows if row["adapter"] == adapter}
        cells = []
        for column in columns:
            row = of_adapter.get(column)
            cells.append(_cell(row, judged.get((adapter, *column))) if row else "")
        found = [row["adaptation_seconds"] for row in of_adapter.values()]
        times = [float(seconds) for seconds in found if seconds]
        time = f"{1000 * fmean(times):.1f}" if times else ""
        yield "| " + " | ".join([adapter, *cells, time]) + " |"


def _judging(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """How the cells were judged; sweeps of an earlier version did not write it down."""
    found = {(row["norm"], row["transductive"], row["n_query"]) for row in rows if row.get("norm")}
    told = [
        f"norm {norm}, predictions {'depend' if together == 'True' else 'do not depend'} on the "
        f"other queries, {n_query} queries a class"
        for norm, together, n_query in sorted(found)
    ]
    if told:
        yield f"{'Judged with' if len(told) == 1 else 'Not judged alike:'} {'; '.join(told)}."


def _labels(row: dict[str, str], axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(row[axis] for axis in axes)


def _cell(row: dict[str, str], difference: dict[str, str] | None) -> str:
    if row["failed"] != "0":
        return f"failed: {row['error']}"
    text = f"{float(row['accuracy']):.3f} ± {float(row['interval']):.3f}"
    if difference is None:
        return f"{text} (baseline)"
    if float(difference["p_holm"]) >= 0.05:
        return text
    mark = "**" if float(difference["difference"]) > 0 else "*"
    return f"{mark}{text}{mark}"


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))

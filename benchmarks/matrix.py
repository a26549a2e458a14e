"""Finished sweeps as one page: every adapter under every weighting.

With the differences that a paired test finds.

    python benchmarks/matrix.py runs/glyphs-sweep runs/omniglot-sweep --out docs/results

Reads `sweep.csv` and `differences.csv` of each folder, which `fsl sweep` wrote, and writes
`<out>/matrix.md`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent
MEASURED = {"interval", "seeds"}
HEADER = """# The matrix: adapters and weightings

After this page you know which adapters and weightings learn quickly on three data sets.

Each table is one `fsl sweep` of a file of `recipes/matrix/`. All its cells have the same backbone,
budget and frozen test episodes. The budgets are small, so that a table takes minutes. So the tables
show what learns quickly, not what ends highest.

- **Bold** is better than the cell marked baseline (of the same test episodes), *italic* is worse.
  This is by a paired test over episodes with Holm's correction over the whole table, at the level
  0.05.
- ± is 95 % over test episodes. It and the test tell about these trained runs on new episodes, not
  about other trainings.
- There are no mean ranks: their blocks are seeds on data sets, and a table has one or two of them.
- Adaptation is in milliseconds a task, the mean over the row, beside whatever else the machine ran.
  The [races](speed.md#adaptation-time) compare times.

`benchmarks/matrix.py` writes this page.

"""


def page(folders: Sequence[Path]) -> str:
    """The Markdown text of all sweeps."""
    return HEADER + "\n".join("\n".join(_section(folder)) for folder in folders)


def _section(folder: Path) -> Iterator[str]:
    rows, differences = _read(folder / "sweep.csv"), _read(folder / "differences.csv")
    name = folder.name.removesuffix("-sweep")
    shared = [column for column in rows[0] if column in differences[0]]
    axes = [column for column in shared if column not in {"adapter", *MEASURED}]
    judged = {_labels(difference, ["adapter", *axes]): difference for difference in differences}
    columns = list(dict.fromkeys(_labels(row, axes) for row in rows))
    seeds = max((row["seeds"].split() for row in rows), key=len)
    yield from (f"## {name}", "")
    plural = "s" if len(seeds) > 1 else ""
    command = f"fsl sweep recipes/matrix/{name}.yaml --jobs 2"
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
    yield ""


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that `fsl sweep` wrote")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results", help="folder of the page"
    )
    given = parser.parse_args(arguments)
    (given.out / "matrix.md").write_text(page(given.folders), encoding="utf-8")


if __name__ == "__main__":
    main()

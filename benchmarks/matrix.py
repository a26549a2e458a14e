"""Finished sweeps as one page: every adapter under every weighting, with the differences that a paired test finds.

    python benchmarks/matrix.py runs/glyphs-sweep runs/omniglot-sweep --out docs/results

Reads `sweep.csv` and `differences.csv` of each folder, which `fsl sweep` wrote, and writes `<out>/matrix.md`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent
HEADER = """# The matrix: adapters and weightings

Each table is one `fsl sweep` of a file of `recipes/matrix/`: the same backbone, budget and frozen test episodes for every cell.
The budgets are small, so that a table takes minutes: they rank what learns quickly, not what ends highest. **Bold**: better than
the cell marked baseline, *italic*: worse, by a paired test over episodes with Holm's correction over the whole table, at the
level 0.05; the test speaks of the trained runs, not of other seeds. ±: 95 % over test episodes. Adaptation: milliseconds a task,
mean over the row, while another run kept the other core busy. Written by `benchmarks/matrix.py`.

"""


def page(folders: Sequence[Path]) -> str:
    """The Markdown text of all sweeps."""
    return HEADER + "\n".join("\n".join(_section(folder)) for folder in folders)


def _section(folder: Path) -> Iterator[str]:
    rows, differences = _read(folder / "sweep.csv"), _read(folder / "differences.csv")
    name = folder.name.removesuffix("-sweep")
    weightings = list(dict.fromkeys(row["outer.weighting"] for row in rows))
    judged = {(difference["adapter"], difference["outer.weighting"]): difference for difference in differences}
    seeds = rows[0]["seeds"].split()
    yield from (f"## {name.capitalize()}", "")
    yield f"`fsl sweep recipes/matrix/{name}.yaml --jobs 2`, {len(seeds)} seed{'s' * (len(seeds) > 1)}."
    yield from ("", "| adapter | " + " | ".join(weightings) + " | adaptation |", "|" + "---|" * (len(weightings) + 2))
    for adapter in dict.fromkeys(row["adapter"] for row in rows):
        of_adapter = {row["outer.weighting"]: row for row in rows if row["adapter"] == adapter}
        cells = [_cell(of_adapter[weighting], judged) for weighting in weightings]
        times = [float(row["adaptation_seconds"]) for row in of_adapter.values() if row["adaptation_seconds"]]
        yield "| " + " | ".join([adapter, *cells, f"{1000 * fmean(times):.1f}" if times else ""]) + " |"
    yield ""


def _cell(row: dict[str, str], judged: dict[tuple[str, str], dict[str, str]]) -> str:
    if row["failed"] != "0":
        return f"failed: {row['error']}"
    text = f"{float(row['accuracy']):.3f} ± {float(row['interval']):.3f}"
    difference = judged.get((row["adapter"], row["outer.weighting"]))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that `fsl sweep` wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the page")
    given = parser.parse_args(arguments)
    (given.out / "matrix.md").write_text(page(given.folders), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Tables of `fsl sweep`: for papers, and differences in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli import outputs

if TYPE_CHECKING:
    from fsl_core.cli.outputs import Output
    from fsl_core.reporting.sweep import SweepResult

LatexFile = Annotated[
    Path | None,
    typer.Option("--latex", metavar="FILE", help="write a table of methods and settings in LaTeX"),
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="write the same table in CSV")
]


def paper_files(latex: Path | None, csv: Path | None, inputs: Sequence[Path]) -> list[Output]:
    """The files of --latex and --csv, checked before anything runs."""
    files = [outputs.latex("--latex", latex)] if latex else []
    files += [outputs.table("--csv", csv)] if csv else []
    outputs.check_outputs(files, inputs)
    return files


def write_paper(result: SweepResult, files: Sequence[Output], raw: bool) -> None:
    """Write the files that `paper_files` gave."""
    from fsl_core.reporting.sweep_paper import paper_table
    from fsl_core.runs.files import write_atomically

    for file in files:
        table = paper_table(result)
        file.make_folder()
        text = table.csv(raw) if file.option == "--csv" else table.latex() + "\n"
        write_atomically(file.path, text)


def print_differences(result: SweepResult) -> None:
    """Paired differences from the baseline, if there are any."""
    from fsl_core.cli.tables import print_table
    from fsl_core.reporting.sweep import difference_table

    told = difference_table(result)
    seeds = any(row["interval_seeds"] != "" for row in told)
    rows = [
        [*of.row.labels.values(), *_difference_cells(row, seeds)]
        for of, row in zip(result.differences, told, strict=True)
    ]
    if rows:
        headings = ["minus", "difference", "p (Holm)", "better, equal, worse"]
        headings += ["seeds too", "p (Holm)"] if seeds else []
        typer.echo()
        print_table([*result.plan.rows[0].labels, *headings], rows)


def _difference_cells(row: dict[str, Any], seeds: bool) -> Iterator[str]:
    yield str(row["minus"])
    yield f"{row['difference']:+.4f} ± {row['interval']:.4f}"
    yield f"{row['p_holm']:.2g}"
    yield f"{row['wins']}, {row['ties']}, {row['losses']}"
    if seeds and row["interval_seeds"] == "":
        yield from ("", "")
    elif seeds:
        yield from (f"± {row['interval_seeds']:.4f}", f"{row['p_seeds_holm']:.2g}")

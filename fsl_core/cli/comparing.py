"""`fsl compare`: runs beside the first one, on the same frozen episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsl_core.cli.arguments import Json, say
from fsl_core.cli.outputs import check_outputs, page

if TYPE_CHECKING:
    from fsl_core.reporting.scores import RunScores
    from fsl_core.reporting.statistics import PairedDifference

RunDirectories = Annotated[
    list[Path],
    typer.Argument(metavar="RUN RUN...", help="directories of runs", show_default=False),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    directories: RunDirectories,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="write a page with a scatter of episodes"),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="compare on this source of `evaluate.on` alone"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs with the first one on the same frozen episodes.

    Shows the paired difference with its interval, wins and losses; for two runs, then that on each
    source of `evaluate.on` that both were judged on. Of three or more, those of one recipe are a
    method over its seeds, and differences are tested over seeds and episodes together, too.
    """
    from fsl_core.errors import RunError
    from fsl_core.reporting.scores import read_scores

    if len(directories) < 2:
        raise RunError("fsl compare: one run. Two or more")
    outputs = [page("--html", html)] if html is not None else []
    check_outputs(outputs, directories)
    runs = [read_scores(directory).on(on) for directory in directories]
    for output in outputs:
        output.make_folder()
    if len(runs) == 2:
        _compare_two((runs[0], runs[1]), html, as_json)
    else:
        _compare_many(runs, html, as_json)


def _compare_two(runs: tuple[RunScores, RunScores], html: Path | None, as_json: bool) -> None:
    from fsl_core.reporting.comparison import (
        compare_further,
        compare_runs,
        further_left_out,
        judging_told,
        method_told,
        write_comparison,
    )

    paired = compare_runs(*runs)
    if html is not None:
        write_comparison(html, *runs)
    if as_json:
        _print_comparison_as_json(runs, paired, html)
        return
    metric = runs[0].metric
    for run in runs:
        score = f"{metric} {run.result[metric]:.4f} ± {run.result['interval']:.4f}"
        say(f"{run.directory}: {score}")
    for line in (*method_told(*runs), *judging_told(*runs)):
        say(line)
    _say_paired("", paired)
    for label, further in compare_further(*runs).items():
        _say_paired(f"on {label}: ", further)
    for line in further_left_out(*runs):
        say(line)
    typer.echo("this tells of these trained runs on new episodes, not of new trainings")
    if html is not None:
        typer.echo(f"page: {html}")


def _say_paired(where: str, paired: PairedDifference) -> None:
    say(
        f"{where}second minus first: {paired.difference:+.4f} ± {paired.interval:.4f} "
        f"(95 % interval, paired t over {paired.episodes} episodes, p = {paired.p:.3g})"
    )
    say(
        f"{where}the second is better on {paired.wins} episodes, equal on {paired.ties}, "
        f"worse on {paired.losses}"
    )


def _print_comparison_as_json(
    runs: tuple[RunScores, RunScores], paired: PairedDifference, page: Path | None
) -> None:
    from dataclasses import asdict

    from fsl_core.reporting.comparison import (
        compare_further,
        further_left_out,
        judging_told,
        method_told,
    )
    from fsl_core.runs.files import to_json

    first, second = runs
    metric = first.metric
    found = {
        "metric": metric,
        "first": first.result[metric],
        "second": second.result[metric],
        **asdict(paired),
        "episode_set": first.result["episode_set"],
        "hypergradient": {"first": first.hypergradient, "second": second.hypergradient},
        "judging": {"first": asdict(first.judging), "second": asdict(second.judging)},
        "notes": [
            *method_told(first, second),
            *judging_told(first, second),
            *further_left_out(first, second),
        ],
        "on": {k: asdict(further) for k, further in compare_further(first, second).items()},
        "page": str(page) if page else None,
    }
    typer.echo(to_json(found, "compare", indent=2))


def _compare_many(runs: Sequence[RunScores], html: Path | None, as_json: bool) -> None:
    from fsl_core.cli.tables import print_table
    from fsl_core.reporting.many import compare_many, write_many
    from fsl_core.runs.files import to_json

    found = compare_many(runs)
    if html is not None:
        write_many(html, found)
    if as_json:
        told = {**found.as_dict(), "page": str(html) if html else None}
        typer.echo(to_json(told, "compare", indent=2))
        return
    for line in found.notes:
        say(line)
    table = found.table()
    print_table(table.headings, table.rows)
    if html is not None:
        typer.echo(f"page: {html}")

"""`fsl sweep`: every combination of a recipe's `matrix:`, with a live table."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Device,
    Json,
    NoLocalPlugin,
    NoPlugin,
    Overrides,
    PluginsDir,
    RawCsv,
    RecipeFile,
    choose_device,
    load_plugins,
)
from fsl_core.text import name_of, printable

if TYPE_CHECKING:
    from fsl_core.reporting.sweep import SweepResult
    from fsl_core.sweeping.schedule import Job

SweepDirectory = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="directory (default: runs/<recipe>-sweep)"),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="runs at a time; cores are shared among them"
    ),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(sweep)


def sweep(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = [],
    jobs: Jobs = 1,
    out: SweepDirectory = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    no_local_plugin: NoLocalPlugin = False,
    as_json: Json = False,
    raw_csv: RawCsv = False,
) -> None:
    """Run every combination of a recipe's `matrix:` and compare them. The same command goes on where it was stopped."""
    from fsl_core.config.matrix import read_matrix
    from fsl_core.hooks.trust import granting
    from fsl_core.reporting.sweep import collect, table, write_tables
    from fsl_core.reporting.sweep_report import write_sweep_report
    from fsl_core.runs.files import to_json
    from fsl_core.sweeping.plan import plan_sweep
    from fsl_core.sweeping.schedule import OUTPUT, make_jobs, only_writer
    from fsl_core.sweeping.start import start

    loaded = load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin)
    context.with_resource(granting(loaded.files))
    choose_device(device)
    plan = plan_sweep(read_matrix(recipe, loaded.catalogue, overrides))
    directory = out or Path("runs") / f"{name_of(recipe)}-sweep"
    queue = make_jobs(plan.cells, directory / "runs")
    kept = sum(job.state == "finished" for job in queue)
    if kept:
        typer.echo(f"{kept} of {len(queue)} runs are finished already and kept", err=True)
    try:
        with _interruptible(), _live(queue) as show:
            why_not_forked = start(queue, loaded, device, jobs, no_plugin, show)
    except KeyboardInterrupt:
        typer.echo("interrupted. The same command goes on with what is not finished", err=True)
        raise typer.Exit(130) from None
    if why_not_forked and any(job.seconds for job in queue):
        told = f"note: no run was forked, so each imported everything again: {why_not_forked}"
        typer.echo(told, err=True)
    result = collect(plan, queue)
    with only_writer(directory / "runs"):
        write_tables(result, directory, raw_csv)
        page = write_sweep_report(directory / "report.html", result, queue, recipe, overrides)
    if as_json:
        told = {"notes": [*result.told_once(), result.ranks_told()], "sweep": str(directory)}
        typer.echo(to_json({"rows": table(result), **told}, "sweep", indent=2))
    else:
        for line in result.told_once():
            typer.echo(printable(line))
        _print_table(result)
        typer.echo(printable(result.ranks_told()))
        tables = f"{directory / 'sweep.csv'}, {directory / 'differences.csv'}"
        typer.echo(printable(f"tables: {tables}\nreport: {page}", lines=True))
    if any(job.state == "failed" for job in queue):
        for job in queue:
            if job.state == "failed":
                where = job.directory / OUTPUT
                typer.echo(printable(f"{job.cell.title}: {job.error} ({where})"), err=True)
        raise typer.Exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does, so that its processes are ended too."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signals = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _live(queue: Sequence[Job]) -> Iterator[Any]:
    """A table that changes in place in a terminal; elsewhere a line for each run that ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    told = {id(job) for job in queue if job.state == "finished"}
    elsewhere = set()

    def tell() -> None:
        for job in queue:
            if job.state == "elsewhere" and id(job) not in elsewhere:
                elsewhere.add(id(job))
                line = f"{job.cell.title}: in work elsewhere, and waited for"
                console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
            if id(job) not in told and job.state in ("finished", "failed"):
                told.add(id(job))
                reason = f": {job.error}" if job.error else ""
                done = f"[{sum(j.state in ('finished', 'failed') for j in queue)}/{len(queue)}]"
                console.print(
                    printable(f"{done} {job.cell.title}: {job.state}{reason}"),
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: (tell(), live.update(_status_table(queue, console.height), refresh=True))


def _status_table(queue: Sequence[Job], height: int):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title_justify="left")
    counts = {
        state: sum(job.state == state for job in queue)
        for state in dict.fromkeys(job.state for job in queue)
    }
    table.title = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    for heading in ("run", "state", "step", "seconds"):
        table.add_column(heading)
    order = {"running": 0, "elsewhere": 1, "failed": 2, "waiting": 3, "finished": 4}
    for job in sorted(queue, key=lambda job: order[job.state])[: max(3, height - 5)]:
        step = (
            f"{job.step} / {job.cell.recipe.sections.outer.steps}" if job.state == "running" else ""
        )
        table.add_row(
            Text(printable(job.cell.title)),
            job.state,
            step,
            f"{job.seconds:.0f}" if job.seconds else "",
        )
    return table


def _print_table(result: SweepResult) -> None:
    from fsl_core.cli.catalogue import print_table
    from fsl_core.reporting.sweep import table

    axes, telling = list(result.plan.rows[0].labels), result.telling_columns()
    rows = []
    for item, row in zip(result.rows, table(result), strict=True):
        labels, failed = [*item.row.labels.values()], row["failed"]
        if item.judging is None:
            rows.append(
                [*labels, "no run finished", *[""] * (4 + len(telling)), f"{failed} failed"]
            )
            continue
        judging = {"norm": item.judging.norm_in_short, "n_query": str(row["n_query"])}
        rows.append(
            [
                *labels,
                f"{row[result.metric]:.4f} ± {row['interval']:.4f}",
                "-" if row["seed_sd"] == "" else f"{row['seed_sd']:.4f}",
                f"{row['rank']:g}",
                *(judging[name] for name in telling),
                f"{1000 * row['adaptation_seconds']:.1f} ms",
                f"{row['training_seconds']:.1f} s",
                f"{failed} failed" if failed else "",
            ]
        )
    headings = [f"{result.metric} (95 % interval)", "sd over seeds", "rank"]
    headings += [{"norm": "norm", "n_query": "queries"}[name] for name in telling]
    print_table([*axes, *headings, "adaptation", "training", ""], rows)

"""`fsl sweep`: every combination of a recipe's `matrix:`, with a live table."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli import sweep_tables
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
    from rich.table import Table

    from fsl_core.hooks.loader import Loaded
    from fsl_core.reporting.sweep import RowResult, SweepResult
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
    latex: sweep_tables.LatexFile = None,
    csv: sweep_tables.CsvFile = None,
) -> None:
    """Run every combination of a recipe's `matrix:` and compare them.

    After an interruption, the same command goes on with what is not finished.
    """
    from fsl_core.config.matrix import read_matrix
    from fsl_core.hooks.trust import granting
    from fsl_core.reporting.sweep import collect, write_tables
    from fsl_core.reporting.sweep_report import write_sweep_report
    from fsl_core.sweeping.plan import plan_sweep
    from fsl_core.sweeping.schedule import make_jobs, only_writer

    files = sweep_tables.paper_files(latex, csv, [recipe])
    loaded = load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin)
    context.with_resource(granting(loaded.files))
    choose_device(device)
    plan = plan_sweep(read_matrix(recipe, loaded.catalogue, overrides))
    directory = out or Path("runs") / f"{name_of(recipe)}-sweep"
    queue = make_jobs(plan.cells, directory / "runs")
    _run_all(queue, loaded, device, jobs, no_plugin)
    result = collect(plan, queue)
    with only_writer(directory / "runs"):
        write_tables(result, directory, raw_csv)
        page = write_sweep_report(directory / "report.html", result, queue, recipe, overrides)
    sweep_tables.write_paper(result, files, raw_csv)
    if as_json:
        _print_json(result, directory)
    else:
        _print_result(result, directory, page)
    _fail_if_any_failed(queue)


def _run_all(
    queue: Sequence[Job], loaded: Loaded, device: str, at_once: int, no_plugin: Sequence[str]
) -> None:
    """Run what is not finished, with a live table."""
    from fsl_core.sweeping.start import start

    kept = sum(job.state == "finished" for job in queue)
    if kept:
        typer.echo(f"{kept} of {len(queue)} runs are finished already and kept", err=True)
    try:
        with _interruptible(), _live(queue) as show:
            why_not_forked = start(queue, loaded, device, at_once, no_plugin, show)
    except KeyboardInterrupt:
        typer.echo("interrupted. The same command goes on with what is not finished", err=True)
        raise typer.Exit(130) from None
    if why_not_forked and any(job.seconds for job in queue):
        told = f"note: no run was forked, so each imported everything again: {why_not_forked}"
        typer.echo(told, err=True)


def _print_json(result: SweepResult, directory: Path) -> None:
    from fsl_core.reporting.sweep import table
    from fsl_core.runs.files import to_json

    notes = [*result.told_once(), result.ranks_told()]
    found = {"rows": table(result), "notes": notes, "sweep": str(directory)}
    typer.echo(to_json(found, "sweep", indent=2))


def _print_result(result: SweepResult, directory: Path, page: Path) -> None:
    for line in result.told_once():
        typer.echo(printable(line))
    _print_table(result)
    sweep_tables.print_differences(result)
    typer.echo(printable(result.ranks_told()))
    tables = f"{directory / 'sweep.csv'}, {directory / 'differences.csv'}"
    typer.echo(printable(f"tables: {tables}\nreport: {page}", lines=True))


def _fail_if_any_failed(queue: Sequence[Job]) -> None:
    from fsl_core.sweeping.schedule import OUTPUT

    failed = [job for job in queue if job.state == "failed"]
    for job in failed:
        where = job.directory / OUTPUT
        typer.echo(printable(f"{job.cell.title}: {job.error} ({where})"), err=True)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the sweep as Ctrl-C does, so that its processes are ended too.

    By default these signals would end Python at once, without any `finally`.
    """

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
def _live(queue: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """A table that changes in place in a terminal; elsewhere a line for each run that ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    lines = _Lines(queue)

    def tell() -> None:
        for line in lines.new():
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            tell()
            live.update(_status_table(queue, console.height), refresh=True)

        yield show


class _Lines:
    """What there is to say of the runs, each thing once."""

    def __init__(self, queue: Sequence[Job]):
        self._queue = queue
        self._ended = {id(job) for job in queue if job.state == "finished"}
        self._elsewhere: set[int] = set()

    def new(self) -> Iterator[str]:
        for job in self._queue:
            if job.state == "elsewhere" and id(job) not in self._elsewhere:
                self._elsewhere.add(id(job))
                yield f"{job.cell.title}: another process works on it, and is waited for"
            if job.state in ("finished", "failed") and id(job) not in self._ended:
                self._ended.add(id(job))
                done = sum(other.state in ("finished", "failed") for other in self._queue)
                reason = f": {job.error}" if job.error else ""
                yield f"[{done}/{len(self._queue)}] {job.cell.title}: {job.state}{reason}"


def _status_table(queue: Sequence[Job], height: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title_justify="left")
    counts = Counter(job.state for job in queue)
    table.title = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    for heading in ("run", "state", "step", "seconds"):
        table.add_column(heading)
    order = {"running": 0, "elsewhere": 1, "failed": 2, "waiting": 3, "finished": 4}
    for job in sorted(queue, key=lambda job: order[job.state])[: max(3, height - 5)]:
        steps = f"{job.step} / {job.cell.recipe.sections.outer.steps}"
        step = steps if job.state == "running" else ""
        seconds = f"{job.seconds:.0f}" if job.seconds else ""
        table.add_row(Text(printable(job.cell.title)), job.state, step, seconds)
    return table


def _print_table(result: SweepResult) -> None:
    from fsl_core.cli.catalogue import print_table
    from fsl_core.reporting.sweep import table

    axes, telling = list(result.plan.rows[0].labels), result.telling_columns()
    rows = [
        [*item.row.labels.values(), *_cells(item, row, result.metric, telling)]
        for item, row in zip(result.rows, table(result), strict=True)
    ]
    headings = [f"{result.metric} (95 % interval)", "sd over seeds", "rank"]
    headings += ["queries" if name == "n_query" else name for name in telling]
    print_table([*axes, *headings, "adaptation", "training", ""], rows)


def _cells(item: RowResult, row: dict[str, Any], metric: str, telling: Sequence[str]) -> list[str]:
    """What follows the labels in a line of the printed table."""
    failed = f"{row['failed']} failed" if row["failed"] else ""
    if item.judging is None:
        return ["no run finished", *[""] * (4 + len(telling)), failed]
    told = {**row, "norm": item.judging.norm_in_short}
    return [
        f"{row[metric]:.4f} ± {row['interval']:.4f}",
        "-" if row["seed_sd"] == "" else f"{row['seed_sd']:.4f}",
        f"{row['rank']:g}",
        *(str(told[name]) for name in telling),
        f"{1000 * row['adaptation_seconds']:.1f} ms",
        f"{row['training_seconds']:.1f} s",
        failed,
    ]

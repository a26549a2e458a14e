"""`fsl sweep`: every combination of a recipe's `matrix:`, by whoever computes it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli import sweep_status, sweep_tables
from fsl_core.cli.arguments import (
    Device,
    Json,
    NoLocalPlugin,
    NoPlugin,
    Overrides,
    PluginsDir,
    RawCsv,
    choose_device,
    find_recipe_file,
    load_plugins,
    say,
    warn,
)
from fsl_core.cli.interrupts import going_on
from fsl_core.launcher import TAKE_OVER
from fsl_core.text import name_of, printable

if TYPE_CHECKING:
    from rich.table import Table

    from fsl_core.cli.outputs import Output
    from fsl_core.hooks.loader import Loaded
    from fsl_core.reporting.sweep import RowResult, SweepResult
    from fsl_core.sweeping.jobs import Job, Prepared
    from fsl_core.sweeping.plan import Plan
    from fsl_core.sweeping.start import Settings

SweptRecipe = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE",
        help="recipe file (YAML) with a `matrix:`, or a name that `fsl recipes` lists",
        callback=lambda given: given and find_recipe_file(given),
        show_default=False,
        readable=False,
    ),
]
SweepDirectory = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="directory (default: runs/<recipe>-sweep)"),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        metavar="N",
        help="runs at a time; cores are shared among them (default: 1, or as the recipe has it)",
        show_default=False,
    ),
]
LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        metavar="NAME",
        help="what starts the runs, as in `fsl list launchers` (default: local, or as the recipe "
        "has it); its options: -s launcher.KEY=VALUE",
        show_default=False,
    ),
]
Prepare = Annotated[
    bool, typer.Option("--prepare", help="make the run directories, and start nothing")
]
Stop = Annotated[
    bool,
    typer.Option(
        "--stop",
        help="end the jobs of a cluster that this command has left, and start nothing",
    ),
]
Worker = Annotated[
    Path | None,
    typer.Option(
        "--worker",
        metavar="FOLDER",
        help="in place of RECIPE: compute runs of this sweep that are free, until none is",
        show_default=False,
    ),
]
Status = Annotated[
    Path | None,
    typer.Option(
        "--status",
        metavar="FOLDER",
        help="in place of RECIPE: how the runs of this sweep stand; nothing is locked",
        show_default=False,
    ),
]
TakeOver = Annotated[
    float,
    typer.Option(
        "--take-over",
        metavar="SECONDS",
        min=1,
        help="silence after which the run of a dead process is taken over; the same for all that "
        "share a sweep",
    ),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(sweep)


def sweep(
    context: typer.Context,
    recipe: SweptRecipe = None,
    overrides: Overrides = [],
    jobs: Jobs = None,
    launcher: LauncherName = None,
    out: SweepDirectory = None,
    prepare: Prepare = False,
    stop: Stop = False,
    worker: Worker = None,
    status: Status = None,
    take_over: TakeOver = TAKE_OVER,
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
    from fsl_core.hooks.trust import granting
    from fsl_core.sweeping.start import Settings

    of_recipe = (overrides, launcher, out, prepare, stop, latex, csv)
    _refuse_mixed(recipe, worker, status, any(of_recipe))
    settings = Settings(device, no_plugin, take_over)
    if status:
        sweep_status.show(status, take_over, as_json)
    elif worker:
        _work(worker, jobs or 1, settings)
    elif recipe:
        files = sweep_tables.paper_files(latex, csv, [recipe])
        loaded = load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin)
        context.with_resource(granting(loaded.files))
        plan = _plan(recipe, loaded, overrides, launcher, jobs)
        directory = out or Path("runs") / f"{name_of(recipe)}-sweep"
        if stop:
            _stop(plan, directory, settings)
            return
        queue = _run_all(plan, directory, loaded, settings, prepare)
        if not prepare:
            _collect(plan, queue, directory, (recipe, overrides), files, as_json, raw_csv)


def _refuse_mixed(
    recipe: Path | None, worker: Path | None, status: Path | None, of_recipe: bool
) -> None:
    given = [what for what in (recipe, worker, status) if what is not None]
    if len(given) != 1:
        raise typer.BadParameter("one of RECIPE, --worker FOLDER and --status FOLDER")
    if of_recipe and recipe is None:
        raise typer.BadParameter(
            "for a RECIPE alone: --set, --launcher, --out, --prepare, --stop, --latex and --csv. "
            "The runs of a folder are prepared"
        )


def _plan(
    recipe: Path, loaded: Loaded, overrides: list[str], launcher: str | None, jobs: int | None
) -> Plan:
    from fsl_core.config.matrix import read_matrix
    from fsl_core.sweeping.plan import plan_sweep

    return plan_sweep(read_matrix(recipe, loaded.catalogue, overrides, launcher, jobs))


def _run_all(
    plan: Plan, directory: Path, loaded: Loaded, settings: Settings, only_prepare: bool
) -> list[Job]:
    """Prepare every run, and run what is not finished, with a live table."""
    from fsl_core.engine.environment import threads_of
    from fsl_core.sweeping.jobs import make_jobs
    from fsl_core.sweeping.prepare import prepare
    from fsl_core.sweeping.start import start

    launcher = plan.matrix.launcher.build(no_plugin=settings.no_plugin)
    if not launcher.outlives:  # else it is another machine that has the device, or has not
        choose_device(settings.device)
    queue = make_jobs(plan.cells, directory / "runs", settings.take_over)
    kept = sum(job.state == "finished" for job in queue)
    if kept:
        typer.echo(f"{kept} of {len(queue)} runs are finished already and kept", err=True)
    threads = threads_of(launcher.at_once or 1)
    prepare(queue, loaded, settings.device, threads, directory.absolute().name)
    if only_prepare:
        say(f"{directory}: {len(queue) - kept} runs to compute. `fsl sweep --worker {directory}`")
        return queue
    with watched(queue, launcher.outlives) as show:
        start(queue, launcher, settings, show)
    if launcher.note() and any(job.seconds for job in queue):
        warn(f"note: {launcher.note()}")
    return queue


def _stop(plan: Plan, directory: Path, settings: Settings) -> None:
    from fsl_core.sweeping.jobs import make_jobs
    from fsl_core.sweeping.start import stop

    launcher = plan.matrix.launcher.build(no_plugin=settings.no_plugin)
    number = stop(make_jobs(plan.cells, directory / "runs", settings.take_over), launcher)
    say(f"{directory}: {number} jobs stopped. The same command without --stop goes on")


def _work(folder: Path, at_once: int, settings: Settings) -> None:
    """Compute runs of a sweep that are free. The exit code is 1 if one of them failed here."""
    from fsl_core.sweeping.jobs import find_jobs
    from fsl_core.sweeping.local import Local
    from fsl_core.sweeping.start import start

    queue = find_jobs(folder, settings.take_over)
    before = {id(job) for job in queue if job.state == "failed"}
    with watched(queue, outlives=False, waits=False) as show:
        start(queue, Local(settings.no_plugin, at_once), settings, show, worker=True)
    counts = Counter(job.state for job in queue)
    say(", ".join(f"{number} {state}" for state, number in sorted(counts.items())))
    fail_if_any_failed([job for job in queue if id(job) not in before and job.seconds])


@contextmanager
def watched(
    queue: Sequence[Prepared], outlives: bool, waits: bool = True, total: int = 0
) -> Iterator[Callable[[], None]]:
    """Within this context runs are shown, and Ctrl-C ends the command.

    outlives: what was started goes on.    waits: what others work on is waited for.
    total:    of the runs, if the queue is to grow.
    """
    left = "The same command goes on with what is not finished"
    told = f"What was started goes on. {left}" if outlives else left
    with going_on(told), _live(queue, waits, total) as show:
        yield show


def _collect(
    plan: Plan,
    queue: Sequence[Job],
    directory: Path,
    asked: tuple[Path, Sequence[str]],
    files: Sequence[Output],
    as_json: bool,
    raw_csv: bool,
) -> None:
    """Write and print the tables of a sweep. asked: its recipe and overrides."""
    from fsl_core.reporting.sweep import collect, write_tables
    from fsl_core.reporting.sweep_report import write_sweep_report
    from fsl_core.sweeping.schedule import only_writer

    result = collect(plan, queue)
    with only_writer(directory):
        write_tables(result, directory, raw_csv)
        page = write_sweep_report(directory / "report.html", result, queue, *asked)
    sweep_tables.write_paper(result, files, raw_csv)
    if as_json:
        _print_json(result, directory)
    else:
        _print_result(result, directory, page)
    fail_if_any_failed(queue)


def _print_json(result: SweepResult, directory: Path) -> None:
    from fsl_core.reporting.sweep import table
    from fsl_core.runs.files import to_json

    notes = [*result.told_once(), result.ranks_told()]
    found = {"rows": table(result), "notes": notes, "sweep": str(directory)}
    typer.echo(to_json(found, "sweep", indent=2))


def _print_result(result: SweepResult, directory: Path, page: Path) -> None:
    for line in result.told_once():
        typer.echo(printable(line))
    print_results(result)
    sweep_tables.print_differences(result)
    typer.echo(printable(result.ranks_told()))
    tables = f"{directory / 'sweep.csv'}, {directory / 'differences.csv'}"
    typer.echo(printable(f"tables: {tables}\nreport: {page}", lines=True))


def fail_if_any_failed(queue: Sequence[Prepared]) -> None:
    """Say which runs failed and why; then the exit code is 1."""
    from fsl_core.launcher import OUTPUT

    failed = [job for job in queue if job.state == "failed"]
    for job in failed:
        where = job.directory / OUTPUT
        typer.echo(printable(f"{job.title}: {job.error} ({where})"), err=True)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _live(queue: Sequence[Prepared], waits: bool, total: int) -> Iterator[Callable[[], None]]:
    """A table that changes in place in a terminal; elsewhere a line for each run that ends."""
    from rich.live import Live

    from fsl_core.data.work import is_reported
    from fsl_core.reporting.progress import Pace, on_stderr

    if not is_reported():
        yield lambda: None
        return
    console, pace = on_stderr().console, Pace()
    lines = _Lines(queue, waits, total, pace.started)

    def tell() -> None:
        for line in lines.new():
            on_stderr().say(printable(line))
        if not console.is_terminal and pace.due():
            on_stderr().say(lines.standing())

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            tell()
            live.update(_status_table(queue, lines.standing(), console.height), refresh=True)

        yield show


class _Lines:
    """What there is to say of the runs, each thing once."""

    def __init__(self, queue: Sequence[Prepared], waits: bool, total: int, started: float):
        self._queue, self._waits, self._total, self._started = queue, waits, total, started
        self._ended = {id(job) for job in queue if job.state in ("finished", "failed")}
        self._kept, self._elsewhere = len(self._ended), set[int]()

    def new(self) -> Iterator[str]:
        for job in self._queue:
            if self._waits and job.state == "elsewhere" and id(job) not in self._elsewhere:
                self._elsewhere.add(id(job))
                yield f"{job.title}: another process works on it, and is waited for"
            if job.state in ("finished", "failed") and id(job) not in self._ended:
                self._ended.add(id(job))
                done = sum(other.state in ("finished", "failed") for other in self._queue)
                total = max(self._total, len(self._queue))
                yield f"[{done}/{total}] {job.title}: {job.ended}"

    def standing(self) -> str:
        """How many runs are in which state, and how long the others may take."""
        from fsl_core.reporting.progress import time_left

        counts = Counter(job.state for job in self._queue)
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        total = max(self._total, len(self._queue)) - self._kept
        ended = sum(job.state in ("finished", "failed") for job in self._queue) - self._kept
        running = [job for job in self._queue if job.state == "running" and job.steps]
        done = ended + sum(job.step / (job.steps or 1) for job in running)
        return f"{told}{time_left(done, total, time.monotonic() - self._started)}"


def _status_table(queue: Sequence[Prepared], title: str, height: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for heading in ("run", "state", "step", "seconds"):
        table.add_column(heading)
    order = {"running": 0, "elsewhere": 1, "failed": 2, "waiting": 3, "finished": 4}
    for job in sorted(queue, key=lambda job: order[job.state])[: max(3, height - 5)]:
        steps = f"{job.step} / {job.steps}" if job.steps else str(job.step)
        step = steps if job.state == "running" else ""
        seconds = f"{job.seconds:.0f}" if job.seconds else ""
        table.add_row(Text(printable(job.title)), job.state, step, seconds)
    return table


def print_results(result: SweepResult) -> None:
    """The table of rows and their scores."""
    from fsl_core.cli.tables import print_table
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

"""`fsl search`: trials of a recipe's `search:`, and the best of each method on test episodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli import sweep_tables, sweeps
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
    say,
    warn,
)
from fsl_core.launcher import TAKE_OVER
from fsl_core.text import name_of, printable

if TYPE_CHECKING:
    from fsl_core.launcher import Launcher
    from fsl_core.reporting.search import SearchResult
    from fsl_core.sweeping.search import MethodSearch, Searching
    from fsl_core.sweeping.start import Settings

SHOWN = 10
"""Trials of a method that the terminal shows; the page and trials.csv have all of them."""

SearchDirectory = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="directory (default: runs/<recipe>-search)"),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(search)


def search(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = [],
    jobs: sweeps.Jobs = None,
    launcher: sweeps.LauncherName = None,
    out: SearchDirectory = None,
    take_over: sweeps.TakeOver = TAKE_OVER,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    no_local_plugin: NoLocalPlugin = False,
    as_json: Json = False,
    raw_csv: RawCsv = False,
) -> None:
    """Search what a recipe's `search:` names, by validation, and test the best of each method.

    After an interruption, the same command goes on to the same end. `fsl sweep --worker DIR` on
    other hosts computes trials, too, and `fsl sweep --status DIR` shows how they stand.
    """
    from fsl_core.config.search import read_search
    from fsl_core.hooks.trust import granting
    from fsl_core.reporting.search import collect_search, write_search
    from fsl_core.sweeping.schedule import only_writer
    from fsl_core.sweeping.search import Searching
    from fsl_core.sweeping.start import Settings

    loaded = load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin)
    context.with_resource(granting(loaded.files))
    directory = out or Path("runs") / f"{name_of(recipe)}-search"
    settings = Settings(device, no_plugin, take_over)
    searching = Searching(
        read_search(recipe, loaded.catalogue, overrides, launcher, jobs),
        directory,
        loaded,
        device,
        take_over,
    )
    with searching.held():
        _compute(searching, settings)
        tests = [one.test for one in searching.methods if one.test is not None]
        if not tests:
            _say_trials(searching)
            _fail(searching)
        result = collect_search(searching)
        with only_writer(directory):
            page = write_search(result, recipe, overrides, raw_csv)
    if as_json:
        _print_json(result)
    else:
        _print_result(result, page)
    _fail(searching)


def _compute(searching: Searching, settings: Settings) -> None:
    """Run all trials and the tests of the best, with a live table."""
    from fsl_core.engine.environment import threads_of
    from fsl_core.sweeping.start import start

    launcher: Launcher = searching.search.launcher.build(no_plugin=settings.no_plugin)
    if not launcher.outlives:
        choose_device(settings.device)
    _tell_limits(searching, launcher)
    threads = threads_of(launcher.at_once or 1)

    def more() -> None:
        searching.advance(launcher, threads)

    more()
    if kept := sum(job.state == "finished" and not job.test for job in searching.queue):
        typer.echo(f"{kept} trials are finished already and kept", err=True)
    total = searching.total + len(searching.methods)
    with sweeps.watched(searching.queue, launcher.outlives, total=total) as show:
        start(searching.queue, launcher, settings, show, more=more)
    if launcher.note() and any(job.seconds for job in searching.queue):
        warn(f"note: {launcher.note()}")


def _tell_limits(searching: Searching, launcher: Launcher) -> None:
    most, asked = searching.at_once(), launcher.at_once
    if asked is not None and asked > most:
        warn(
            f"note: {asked} jobs, and at most {most} trials at a time: search.batch "
            f"{searching.search.options.batch} for each of {len(searching.methods)} methods"
        )
    for one in searching.methods:
        if told := searching.searcher.note(one.study):
            warn(f"note: {one.study.name}: {told}")


def _say_trials(searching: Searching) -> None:
    from fsl_core.reporting.search import told_of

    for one in searching.methods:
        say(f"{one.study.name}: {told_of(one)}")


def _fail(searching: Searching) -> None:
    """The exit code is 1 if a trial failed for another reason than its parameters, or all did."""
    sweeps.fail_if_any_failed(searching.queue)
    if any(one.best is None for one in searching.methods):
        raise typer.Exit(1)


def _print_json(result: SearchResult) -> None:
    from fsl_core.reporting.search import best_recipe, trial_rows
    from fsl_core.reporting.sweep import table
    from fsl_core.runs.files import to_json

    folder = result.searching.folder
    methods = [
        {
            "method": one.study.name,
            "best": one.best.number if one.best else None,
            "recipe": str(best_recipe(one, folder)) if one.test else None,
            "trials": trial_rows(one),
        }
        for one in result.methods
    ]
    rows = table(result.tested) if result.tested else []
    found: dict[str, Any] = {"rows": rows, "methods": methods, "notes": list(result.notes)}
    typer.echo(to_json({**found, "search": str(folder)}, "search", indent=2))


def _print_result(result: SearchResult, page: Path) -> None:
    from fsl_core.reporting.search import reproduce_command, told_of

    folder = result.searching.folder
    for line in result.notes:
        say(line)
    for one in result.methods:
        say(f"\n{one.study.name}: {told_of(one)}")
        _print_trials(one)
    if result.tested is not None:
        say("\nthe best of each method on test episodes:")
        sweeps.print_results(result.tested)
        sweep_tables.print_differences(result.tested)
    for one in result.methods:
        if one.test is not None and one.test.has_result:
            say(f"{one.study.name} again: {reproduce_command(one, result.searching)}")
    tables = ", ".join(str(folder / name) for name in ("trials.csv", "sweep.csv"))
    typer.echo(printable(f"tables: {tables}\nreport: {page}", lines=True))


def _print_trials(one: MethodSearch) -> None:
    from fsl_core.cli.tables import print_table
    from fsl_core.reporting.search import trial_rows

    rows = trial_rows(one)
    cells = [
        [
            str(row["trial"]),
            *row["parameters"].values(),
            "-" if row["score"] is None else f"{row['score']:.4f} ± {row['interval']:.4f}",
            str(row["step"]),
            row["state"],
        ]
        for row in rows[:SHOWN]
    ]
    shown = f"validation {one.study.metric}"
    print_table(["trial", *one.study.space, shown, "step", "state"], cells)
    if len(rows) > SHOWN:
        say(f"and {len(rows) - SHOWN} more")

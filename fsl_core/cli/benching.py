"""`fsl bench` and `fsl leaderboard`: runs judged on versioned tasks, and who is ahead on them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Device,
    Json,
    NoPlugin,
    PluginsDir,
    TrustPlugins,
    choose_device,
    find_recipe_file,
    load_plugins,
    recorded_plugins,
    say,
)
from fsl_core.cli.interrupts import going_on
from fsl_core.cli.outputs import Output, check_outputs, page

if TYPE_CHECKING:
    from fsl_core.config.benchmarks import Benchmark

PLACES = ("root", "path", "file", "download")
"""Options of episodes that do not change them: where they lie."""


def add_commands(app: typer.Typer) -> None:
    app.command()(bench)
    app.command()(leaderboard)


def bench(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="as in `fsl list benchmarks`, or its file", show_default=False
        ),
    ],
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|RECIPE",
            help="a trained run, or a recipe, which is trained first",
            show_default=False,
            readable=False,
        ),
    ],
    overrides: Annotated[
        list[str],
        typer.Option(
            "-s", "--set", metavar="KEY=VALUE", help="where data is: -s episodes.root=DIR"
        ),
    ] = [],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="default: results/<task>-<run>.json"),
    ] = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    as_json: Json = False,
) -> None:
    """Judge a run on a benchmark task, and write its result for `fsl leaderboard`.

    The episodes have to be those of the task's version: their hash is checked first.
    """
    from fsl_core.config.benchmarks import find_benchmark
    from fsl_core.runs.files import RECIPE, is_file, to_json, write_atomically

    benchmark = find_benchmark(task, load_plugins(no_plugin, plugins_dir).catalogue)
    trained = is_file(run / RECIPE)
    changes = _changes(overrides, of_run=trained)
    name = run.resolve().name if trained else run.stem
    path = out or Path("results") / f"{benchmark.name}-{name}.json"
    file = Output("--out", path, (".json",), "A result in JSON")
    check_outputs([file], [run])
    if not trained:
        run = _train(run, overrides, device, no_plugin, plugins_dir)
    plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    with going_on(f"`fsl bench {task} {run}` judges it") if not trained else nullcontext():
        found = _judge(run, benchmark, changes, device, plugins)
    text = to_json(found, file.path, indent=1)
    file.make_folder()
    write_atomically(file.path, text + "\n")
    if as_json:
        told = {key: value for key, value in found.items() if key not in ("scores", "recipe")}
        typer.echo(to_json({**told, "file": str(file.path)}, "bench", indent=2))
        return
    metric = found["metric"]
    score = f"{metric} {found[metric]:.4f} ± {found['interval']:.4f}"
    say(f"{benchmark.title}: {score} (95 % interval, {found['episodes']} episodes)")
    say(f"result: {file.path}")


def _changes(overrides: list[str], of_run: bool) -> list[str]:
    """What overrides say of where the task's episodes lie. RunError for others, of a run."""
    from fsl_core.errors import RunError

    prefixes = tuple(f"episodes.{place}=" for place in PLACES)
    other = [text for text in overrides if not text.startswith(prefixes)]
    if other and of_run:
        places = ", ".join(f"episodes.{place}" for place in PLACES)
        raise RunError(f"-s {other[0]}: neither a run nor a task is changed. One of {places}")
    return [text.removeprefix("episodes.") for text in overrides if text not in other]


def _train(
    given: Path, overrides: list[str], device: str, no_plugin: list[str], plugins_dir: Path | None
) -> Path:
    from fsl_core.cli.runs import run_recipe

    recipe = find_recipe_file(given)
    loaded = load_plugins(no_plugin, plugins_dir, recipe)
    return run_recipe(recipe, loaded, overrides, None, device, None)[1]


def _judge(
    run: Path, benchmark: Benchmark, changes: list[str], device: str, plugins: dict[str, Any]
) -> dict[str, Any]:
    from fsl_core.api import EVALUATING
    from fsl_core.data.work import reported
    from fsl_core.runs.opening import open_run
    from fsl_core.training.benchmarking import judge_on_benchmark

    on = [str(benchmark.file), *changes]
    with (
        open_run(run, choose_device(device), write=False, on=on, **plugins) as opened,
        reported(EVALUATING, benchmark.episodes) as advance,
    ):
        return judge_on_benchmark(opened, benchmark, partial(advance, 1))


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="files that `fsl bench` wrote, or folders of them",
            show_default=False,
            readable=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="page to write")] = Path(
        "leaderboard.html"
    ),
    as_json: Json = False,
) -> None:
    """Make a page of results of `fsl bench`: the order on each task, and who beats whom.

    Results of another version or of other episodes of a task are refused.
    """
    from fsl_core.cli.tables import print_table
    from fsl_core.reporting.leaderboard import boards, read_submissions, write_leaderboard
    from fsl_core.runs.files import to_json

    output = page("--out", out)
    check_outputs([output], results)
    found = boards(read_submissions(results))
    output.make_folder()
    write_leaderboard(out, found)
    if as_json:
        told = {"boards": [board.as_dict() for board in found], "page": str(out)}
        typer.echo(to_json(told, "leaderboard", indent=2))
        return
    for board in found:
        say(f"{board.title}, episode set {board.episode_set[:12]}")
        for line in board.notes:
            say(line)
        table = board.table()
        print_table(table.headings, table.rows)
        typer.echo()
    say(f"page: {out}")

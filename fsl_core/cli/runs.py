"""Commands that train and evaluate: run, resume, eval, reproduce, report."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Checkpoint,
    Device,
    Json,
    NoLocalPlugin,
    NoPlugin,
    Overrides,
    PluginsDir,
    RecipeFile,
    RecipeOrKept,
    RunDirectory,
    TrustPlugins,
    check_checkpoint,
    choose_device,
    load_plugins,
    recorded_plugins,
    say,
    warn,
)
from fsl_core.cli.interrupts import follow
from fsl_core.cli.ranks import Processes
from fsl_core.text import name_of

if TYPE_CHECKING:
    from fsl_core.config.sections import Expected
    from fsl_core.data.source import Split
    from fsl_core.hooks.loader import Loaded
    from fsl_core.runs.run import Run

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="run directory (default: runs/<recipe>, numbered)"),
]


def add_commands(app: typer.Typer) -> None:
    for command in (run, resume, evaluate, reproduce, report):
        app.command(name={"evaluate": "eval"}.get(command.__name__, command.__name__))(command)


def run(
    recipe: RecipeFile,
    overrides: Overrides = [],
    out: Out = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    no_local_plugin: NoLocalPlugin = False,
    as_json: Json = False,
    processes: Processes = None,
) -> None:
    """Train and evaluate a recipe."""
    with _json_alone(as_json):
        loaded = _load(no_plugin, plugins_dir, recipe, no_local_plugin)
        options = None if processes else _options(device, no_plugin, plugins_dir, as_json)
        result, directory = run_recipe(recipe, loaded, overrides, out, device, options)
    if result is not None:
        _print_result(result, directory, as_json)


def resume(
    directory: RunDirectory,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="train for N outer steps in all, not the recipe's"),
    ] = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    as_json: Json = False,
    processes: Processes = None,
) -> None:
    """Continue a run from its last checkpoint, exactly as if it had never stopped.

    With --steps, schedules and warm-ups are stretched over the new number from here on, and the
    result says so; the files of a finished run's result are kept as result-<steps>.json and so on.
    """
    from fsl_core.engine.ranks import join
    from fsl_core.runs.opening import open_run

    ranks = join()
    plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    options = {"write": True, "steps": steps, "ranks": ranks, **plugins}
    with open_run(directory, choose_device(device, ranks), **options) as opened:
        result = ranks.told(opened.records.result)
        if result is None:
            opened.restore_last()
            with _json_alone(as_json):
                # What is noted of other steps is known to this process alone.
                count = 1 if processes or steps else _processes_for(opened)
                result = _complete(opened) if count == 1 else None
    if result is None:
        _go_on(directory, count, _options(device, no_plugin, plugins_dir, as_json))
        return
    _print_result(result, None if "split" in result else directory, as_json)


def evaluate(
    directory: RunDirectory,
    episodes: Annotated[
        int | None, typer.Option(min=2, help="test episodes (default: as in the recipe)")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    on: Annotated[
        list[str],
        typer.Option(
            "--on",
            metavar="RECIPE|KEY=VALUE",
            help="judge on other data: the episodes of a recipe, or a label of `evaluate.on`, "
            "or the run's own; then changes of them: --on name=mnist --on split=by-image",
        ),
    ] = [],
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    as_json: Json = False,
    processes: Processes = None,
) -> None:
    """Evaluate a trained run again: more episodes, another split, other data. Writes nothing."""
    from fsl_core.api import EVALUATING
    from fsl_core.data.source import SPLITS
    from fsl_core.data.work import reported
    from fsl_core.engine.evaluation import share_of_episodes
    from fsl_core.engine.ranks import join
    from fsl_core.errors import RunError
    from fsl_core.runs.opening import open_run
    from fsl_core.training.judging import evaluate_run, state_of

    if split not in SPLITS:
        raise RunError(f"--split {split}: no such split. One of {', '.join(SPLITS)}")
    check_checkpoint(checkpoint)
    ranks = join()
    plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    options = {"write": False, "on": on, "ranks": ranks, **plugins}
    with open_run(directory, choose_device(device, ranks), **options) as opened:
        which = opened.restore_for_evaluation(checkpoint)
        label, source = next(iter(opened.experiment.further.items())) if on else ("", None)
        if source is None:
            _note_data(opened, split)
        else:
            source.check(split)
        count = episodes or opened.recipe.sections.evaluate.episodes
        with reported(EVALUATING, share_of_episodes(ranks, count)) as advance:
            told = partial(advance, 1)
            summary = evaluate_run(opened, split, count, source, on_episode=told).summary()
        summary |= state_of(opened.experiment.learner.adapter)
    where = {"on": label} if on else {}
    _print_result({**summary, "split": split, "checkpoint": which, **where}, None, as_json)


def reproduce(
    recipe: RecipeOrKept,
    overrides: Overrides = [],
    out: Out = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    no_local_plugin: NoLocalPlugin = False,
    processes: Processes = None,
) -> None:
    """Run a recipe and compare the result with its `expect:`.

    What `fsl keep` wrote is trained again, and is held to its own score if it expects nothing.
    The exit code is 1 if the result is outside the tolerance.
    """
    from fsl_core.config.recipe import read_recipe
    from fsl_core.engine.ranks import join
    from fsl_core.errors import RecipeError
    from fsl_core.reporting.scores import figure_of
    from fsl_core.runs.files import read_result

    loaded = _load(no_plugin, plugins_dir, recipe, no_local_plugin)
    expected = join().in_turn(
        lambda: read_recipe(recipe, loaded.catalogue, overrides).sections.expect or _as_kept(recipe)
    )
    if not expected:
        raise RecipeError(
            f"{recipe}: no `expect:`, so there is nothing to compare a result with. "
            "{accuracy: {value: …, tolerance: …}}"
        )
    options = None if processes else _options(device, no_plugin, plugins_dir, as_json=False)
    result, directory = run_recipe(recipe, loaded, overrides, out, device, options)
    if result is None:
        result = read_result(directory)
    else:
        _print_result(result, directory, as_json=False)
    missed = False
    for key, wanted in expected.items():
        figure = figure_of(result, key)
        within = figure is not None and abs(figure - wanted.value) <= wanted.tolerance
        missed |= not within
        found = "absent" if figure is None else f"{figure:.4f}"
        verdict = "reproduced" if within else "NOT reproduced"
        expectation = f"expected {wanted.value} ± {wanted.tolerance}"
        typer.echo(f"{verdict}: {key} {found}, {expectation}")
    if missed and join().first:  # the others end well, and leave the first one the time to say it
        raise typer.Exit(1)


def _as_kept(recipe: Path) -> dict[str, Expected]:
    """The score of the finished run that a recipe lies in, within its interval."""
    from fsl_core.config.sections import Expected
    from fsl_core.runs.files import RECIPE, RESULT, is_file, read_result

    if recipe.name != RECIPE or not is_file(recipe.with_name(RESULT)):
        return {}
    result = read_result(recipe.parent)
    metric = result["metric"]
    return {
        metric: Expected(value=round(result[metric], 4), tolerance=round(result["interval"], 4))
    }


def report(
    directory: RunDirectory,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="page to write (default: RUN/report.html)")
    ] = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
) -> None:
    """Write a finished run's report.html again and say where it is."""
    from fsl_core.data.work import reported
    from fsl_core.errors import FslError, RunError
    from fsl_core.reporting.report import WRITING, write_report
    from fsl_core.reporting.scores import read_scores
    from fsl_core.runs.begun import refuse_edited
    from fsl_core.runs.files import check_files
    from fsl_core.runs.opening import open_run

    read_scores(directory)
    check_files(directory)
    refuse_edited(directory)
    plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    opened: Run | None = None
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(
                open_run(directory, choose_device(device), write=False, **plugins)
            )
            opened.restore_for_evaluation()
            _note_data(opened, "test")
            shown, why = opened.view(), ""
        except FslError as error:  # plugin, weights or data may be elsewhere, or are not trusted
            warn(f"without episodes: {error}")
            shown, why = None, str(error)
        try:
            with reported(WRITING, None):
                path = write_report(directory, shown, why, out)
        except RunError as error:
            raise error if out else RunError(f"{error}: --out FILE") from error
    typer.echo(f"report: {path}")


def run_recipe(
    recipe_file: Path,
    loaded: Loaded,
    overrides: list[str],
    out: Path | None,
    device: str,
    options: list[str] | None,
) -> tuple[dict[str, Any] | None, Path]:
    """Train and judge a recipe; its result, and where it is.

    options: of `fsl resume`, which completes a long run in several processes and tells its result;
             that is None then. None: this process completes it, or those that are there already.
    """
    from fsl_core.config.recipe import read_recipe
    from fsl_core.engine.ranks import join
    from fsl_core.runs.opening import new_run

    ranks, files = join(), map(Path, loaded.files)
    recipe = ranks.in_turn(lambda: read_recipe(recipe_file, loaded.catalogue, overrides))
    directory = out or Path(ranks.told(lambda: str(_free_directory(_run_name(recipe_file)))))
    wanted = choose_device(device, ranks)
    with new_run(directory, recipe, loaded, wanted, files, ranks) as started:
        count = 1 if options is None else _processes_for(started)
        if count == 1:
            return _complete(started), directory
    _go_on(directory, count, options or [])
    return None, directory


def _options(
    device: str, no_plugin: list[str], plugins_dir: Path | None, as_json: bool
) -> list[str]:
    """What `fsl resume` has to be told as well, to complete a run as this command would."""
    # This process has asked already whether to trust them, and imported them.
    told = ["--device", device, "--trust-plugins"]
    told += [word for name in no_plugin for word in ("--no-plugin", name)]
    told += ["--plugins-dir", str(plugins_dir)] if plugins_dir else []
    return told + (["--json"] if as_json else [])


def _processes_for(run: Run) -> int:
    from fsl_core.training.outer_loop import processes_of

    follow(run)  # a choice may be measured
    return processes_of(run)


def _go_on(directory: Path, count: int, options: list[str]) -> None:
    """Complete a run in as many processes, each with as many threads as this one."""
    import torch

    from fsl_core.cli.ranks import launch

    warn(f"{count} processes go on, and share the workers. `--processes 1` stays in one")
    if code := launch(count, ["resume", str(directory), *options], torch.get_num_threads()):
        raise typer.Exit(code)


def _load(
    no_plugin: list[str], plugins_dir: Path | None, recipe: Path, no_local_plugin: bool
) -> Loaded:
    from fsl_core.engine.ranks import join

    return join().in_turn(lambda: load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin))


def _complete(run: Run) -> dict[str, Any]:
    from fsl_core.api import complete
    from fsl_core.engine.memory import keep_freed_memory

    keep_freed_memory()
    run.observers.warn = warn
    return complete(run, follow)


def _note_data(run: Run, split: Split) -> None:
    """Say on stderr how the data differs from that which the run began with."""
    from fsl_core.runs.data_record import data_changes

    if changes := data_changes(run.folder, run.experiment.source, split):
        comparison = "These episodes are not those of before"
        typer.echo(f"note: data changed since training began: {changes}. {comparison}", err=True)


def _run_name(recipe_file: Path) -> str:
    """Of the run that the recipe lies in, or else of the recipe."""
    from fsl_core.runs.files import RECIPE

    return (
        recipe_file.absolute().parent.name if recipe_file.name == RECIPE else name_of(recipe_file)
    )


def _free_directory(name: str) -> Path:
    base = Path("runs") / name
    candidates = [base, *(base.with_name(f"{name}-{n}") for n in range(2, 10_000))]
    return next(path for path in candidates if not path.exists())


def _json_alone(as_json: bool) -> AbstractContextManager[Any]:
    """What a component prints during a run goes to stderr if stdout is to be JSON alone."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _judged(result: dict[str, Any]) -> str:
    """Which weights a figure is of."""
    if not result["steps"]:
        return "not trained"
    return f"checkpoint {result['checkpoint']} of step {result['checkpoint_step']}"


def _print_result(result: dict[str, Any], directory: Path | None, as_json: bool) -> None:
    from fsl_core.reporting.progress import format_score
    from fsl_core.reporting.scores import scores_after_steps
    from fsl_core.runs.begun import describe_change
    from fsl_core.runs.files import UNROLLED, to_json
    from fsl_core.runs.starting import describe_start

    if as_json:
        told = {**result, **({"run": str(directory)} if directory else {})}
        typer.echo(to_json(told, "result", indent=2))
        return
    where = "test"
    if not directory:
        where = f"{result['split']} on {result['on']}" if "on" in result else result["split"]
    say(f"{where} {format_score(result)}")
    metric = result["metric"]
    if steps := scores_after_steps(result):
        say(f"{metric} after 0, 1, ... inner steps: {', '.join(f'{score:.4f}' for score in steps)}")
    for label, row in result.get("on", {}).items() if directory else ():
        say(f"test on {label} {format_score(row)}, episode set {row['episode_set'][:12]}")
    if state := result.get("adapter_state"):
        say(f"adapter: {', '.join(f'{name} {value:g}' for name, value in state.items())}")
    if not result.get("settled", True):
        say("not settled: the judged weights are from inside the adapter's warm-up")
    if start := result.get("start_from"):
        say(describe_start(start))
    for change in result.get("steps_changed", []):
        say(describe_change(change))
    if directory is not None:
        if (estimate := result["hypergradient"]) != UNROLLED:
            say(f"hypergradient {estimate}")
        say(
            f"norm {result['norm']}, "
            f"{_judged(result)}, "
            f"adaptation {1000 * result['adaptation_seconds']:.1f} ms per task, "
            f"episode set {result['episode_set'][:12]}"
        )
        execution = result.get("execution", "unknown: an earlier version ran it")
        say(f"execution {execution}{_how_settled(directory)}")
        say(f"report: {directory / 'report.html'}")


def _how_settled(directory: Path) -> str:
    """How the execution of a run was chosen, if it was measured."""
    from fsl_core.runs.opening import read_choice

    choice = read_choice(directory)
    return f" ({choice.when})" if choice and choice.when else ""

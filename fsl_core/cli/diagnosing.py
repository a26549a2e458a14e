"""Commands that look into what adaptation does: reuse, patterns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Checkpoint,
    Device,
    Json,
    NoPlugin,
    PluginsDir,
    RunDirectory,
    TrustPlugins,
    check_checkpoint,
    choose_device,
    recorded_plugins,
    run_there,
    say,
)

if TYPE_CHECKING:
    from fsl_core.episode import TaskShape
    from fsl_core.runs.run import Run

Split = Annotated[str, typer.Option(help="train, validation or test")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="folder for its files (default: RUN)"),
]
Queries = Annotated[
    int | None,
    typer.Option("--n-query", min=1, help="queries of each class (default: as in the recipe)"),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(reuse)
    app.command()(patterns)


def reuse(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="directories of runs", callback=run_there, show_default=False
        ),
    ],
    layers: Annotated[
        list[str],
        typer.Option("--layers", metavar="PATTERN", help="modules of the backbone, again for more"),
    ] = [],
    maps: Annotated[
        str,
        typer.Option(help="whole: a map is one item; positions: an item at each position"),
    ] = "whole",
    episodes: Annotated[int, typer.Option(min=2, help="episodes")] = 100,
    n_query: Queries = None,
    split: Split = "test",
    out: Out = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    as_json: Json = False,
) -> None:
    """Compare features before and after adaptation, layer by layer, with the score beside.

    Writes reuse.json, reuse.csv and reuse.svg. A distance is null, with the reason, where there are
    too few items for the width of a layer: --n-query gives more.
    """
    from fsl_core.diagnosing.reuse import FeatureReuse, measure_reuse
    from fsl_core.errors import RunError
    from fsl_core.reporting.diagnoses import reuse_lines, write_reuse

    if out is None and len(directories) > 1:
        raise RunError(f"fsl reuse: {len(directories)} runs. --out DIR for their files")
    if len({str(d) for d in directories}) < len(directories):
        raise RunError("fsl reuse: the same run twice. Each once")
    found: dict[str, FeatureReuse] = {}
    for directory in directories:
        plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
        with _opened(directory, checkpoint, split, device, plugins) as (run, _):
            task = _task(run, n_query)
            seed, source = run.recipe.sections.evaluate.seed, run.experiment.source
            source.check(split, task)  # type: ignore[arg-type]  # looked at in _opened
            found[str(directory)] = measure_reuse(
                run.experiment.fitting_for(task),
                source,
                split,  # type: ignore[arg-type]
                episodes,
                seed,
                task,
                layers=layers,
                maps=maps,  # type: ignore[arg-type]
            )
    told = {"split": split, "episodes": episodes, "maps": maps}
    folder = _folder(out or directories[0])
    write_reuse(folder, found, told)
    _say(folder / "reuse.json", as_json, [n for f in found.items() for n in reuse_lines(*f)])


def patterns(
    directory: RunDirectory,
    within: Annotated[
        float, typer.Option(min=0, help="the score that the chosen pattern may lose")
    ] = 0.01,
    beam: Annotated[
        int,
        typer.Option(min=0, help="sequences kept while each step gets a mask of its own; 0: none"),
    ] = 3,
    episodes: Annotated[int, typer.Option(min=2, help="episodes")] = 100,
    split: Split = "validation",
    out: Out = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    trust_plugins: TrustPlugins = False,
    as_json: Json = False,
) -> None:
    """Find which layers adaptation has to move, and choose the fastest pattern that is as good.

    Tries masks of layers on validation episodes. Writes patterns.json, patterns.csv, patterns.svg,
    and pattern.yaml: the recipe that judges the run again with the chosen pattern.
    """
    from fsl_core.diagnosing.patterns import measure_patterns
    from fsl_core.reporting.diagnoses import pattern_lines, recipe_with, write_patterns

    plugins = recorded_plugins(no_plugin, plugins_dir, trust_plugins)
    with _opened(directory, checkpoint, split, device, plugins) as (run, which):
        task = _task(run, None)
        seed, source = run.recipe.sections.evaluate.seed, run.experiment.source
        source.check(split, task)  # type: ignore[arg-type]  # looked at in _opened
        found = measure_patterns(
            run.experiment.fitting_for(task),
            source,
            split,  # type: ignore[arg-type]
            episodes,
            seed,
            task,
            beam=beam,
        )
    chosen = found.chosen(within)
    folder = _folder(out or directory)
    told = {"run": str(directory), "split": split, "episodes": episodes, "within": within}
    recipe = recipe_with(run.recipe, found, chosen, directory, which)
    write_patterns(folder, found, chosen, told, recipe)
    lines = [*pattern_lines(found, chosen), f"recipe: {folder / 'pattern.yaml'}"]
    _say(folder / "patterns.json", as_json, lines)


@contextmanager
def _opened(
    directory: Path, checkpoint: str | None, split: str, device: str, plugins: dict[str, Any]
) -> Iterator[tuple[Run, str]]:
    """A run with the weights to be judged, and the checkpoint that they are from."""
    from fsl_core.data.source import SPLITS
    from fsl_core.errors import RunError
    from fsl_core.runs.opening import open_run

    check_checkpoint(checkpoint)
    if split not in SPLITS:
        raise RunError(f"--split {split}: no such split. One of {', '.join(SPLITS)}")
    with open_run(directory, choose_device(device), write=False, **plugins) as run:
        yield run, run.restore_for_evaluation(checkpoint)


def _task(run: Run, n_query: int | None) -> TaskShape:
    from dataclasses import replace

    task = run.experiment.test_task
    return task if n_query is None else replace(task, n_query=n_query)


def _folder(folder: Path) -> Path:
    from fsl_core.runs.files import writing

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _say(file: Path, as_json: bool, lines: list[str]) -> None:
    if as_json:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
        return
    for line in lines:
        say(line)
    say(f"files: {', '.join(str(file.with_suffix(e)) for e in ('.json', '.csv', '.svg'))}")

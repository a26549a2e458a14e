"""The command that measures how a recipe is computed fastest: tune-execution."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from fsl_core.cli.arguments import (
    Device,
    Json,
    NoPlugin,
    Overrides,
    PluginsDir,
    RecipeFile,
    choose_device,
    load_plugins,
)

if TYPE_CHECKING:
    from fsl_core.engine.choice import Choice


def add_commands(app: typer.Typer) -> None:
    app.command(name="tune-execution")(tune_execution)


def tune_execution(
    recipe: RecipeFile,
    overrides: Overrides = [],
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    as_json: Json = False,
) -> None:
    """Measure again what computes a recipe fastest, and keep it for every later `fsl run` of it.

    Runs that have begun go on as they began. Nothing is trained.
    """
    from fsl_core.assembly.experiment import build_experiment, check_data
    from fsl_core.config.recipe import read_recipe
    from fsl_core.engine.memory import keep_freed_memory
    from fsl_core.training import mode_choice

    where = choose_device(device)
    checked = read_recipe(recipe, load_plugins(no_plugin, plugins_dir, recipe).catalogue, overrides)
    experiment = build_experiment(checked, where)
    check_data(experiment)
    keep_freed_memory()
    before, now = mode_choice.tune_execution(experiment, where)
    if as_json:
        known = {"before": before and before.as_dict(), "now": now.as_dict()}
        typer.echo(json.dumps(known, indent=2))
        return
    for name, seconds in now.seconds.items():
        typer.echo(f"{name:16} " + ("failed" if seconds is None else f"{seconds:.4g} s"))
    typer.echo(_change(before, now))


def _change(before: Choice | None, now: Choice) -> str:
    if before is None:
        return f"execution {now}. Every later run of this recipe takes it"
    if before.execution == now.execution:
        return f"execution {now}. As before"
    return f"execution {now}. It was {before}. Later runs differ from earlier ones by rounding"

"""Commands about what is installed: check, schema, plugins, list, show, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Json,
    NoLocalPlugin,
    NoPlugin,
    Overrides,
    PluginsDir,
    RecipeFile,
    choose_device,
    load_plugins,
    warn,
)
from fsl_core.cli.tables import print_table
from fsl_core.text import printable

if TYPE_CHECKING:
    from fsl_core.assembly.experiment import Experiment
    from fsl_core.config.recipe import Recipe
    from fsl_core.hooks.catalogue import Catalogue
    from fsl_core.hooks.plugin import Plugin

KINDS = {
    "episodes": "episodes",
    "backbones": "backbone",
    "adapters": "adapter",
    "hypergradients": "hypergradient",
    "weightings": "weighting",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "launchers": "launcher",
    "searchers": "searcher",
    "benchmarks": "benchmark",
    "stores": "store",
}


def add_commands(app: typer.Typer) -> None:
    for command in (check, schema, plugins, list_components, show, doctor):
        app.command(name={"list_components": "list"}.get(command.__name__, command.__name__))(
            command
        )


def check(
    recipe: RecipeFile,
    overrides: Overrides = [],
    data: Annotated[
        bool, typer.Option("--data", help="read the data, too: classes, sizes, what is passed over")
    ] = False,
    whole: Annotated[bool, typer.Option("--list", help="with --data: name every file")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --data: print JSON")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="tell how much memory training takes at its fullest")
    ] = False,
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    no_local_plugin: NoLocalPlugin = False,
) -> None:
    """Check a recipe: every option, and its parts on a made-up episode.

    --data reads its data, --memory computes two tasks of a meta-batch.

    Imports fslplugin.py from beside the recipe, as `fsl run` does: that runs it.
    """
    from fsl_core.assembly.experiment import build_experiment, build_optimizer
    from fsl_core.assembly.preflight import preflight
    from fsl_core.config.document import read_document
    from fsl_core.config.recipe import command_of, read_recipe
    from fsl_core.config.sections import SECTIONS
    from fsl_core.runs.starting import take_start

    if (whole or as_json) and not data:
        option = "--list" if whole else "--json"
        raise typer.BadParameter(f"{option} says what is read. With --data", param_hint=option)
    if memory and as_json:
        raise typer.BadParameter("what it tells is no JSON. Without --json", param_hint="--memory")
    loaded = load_plugins(no_plugin, plugins_dir, recipe, no_local_plugin)
    if loaded.files:
        warn(f"imported {', '.join(loaded.files)}")
    command = command_of(read_document(recipe, overrides, SECTIONS).data)
    if command != "run":
        if data or memory:
            _refuse_many(recipe, command, "--data reads the data" if data else "--memory tells")
        checks = {"sweep": _check_matrix, "search": _check_search}
        checks[command](recipe, loaded.catalogue, overrides)
        return
    checked = read_recipe(recipe, loaded.catalogue, overrides)
    experiment = build_experiment(checked)
    build_optimizer(checked, experiment)
    take_start(checked, experiment.learner)
    preflight(experiment)
    if data:
        _check_data(experiment, whole, as_json)
    if not as_json:
        _say_checked(recipe, checked, experiment, memory)


def _check_matrix(recipe: Path, catalogue: Catalogue, overrides: list[str]) -> None:
    from fsl_core.assembly.experiment import build_experiment
    from fsl_core.assembly.preflight import preflight_all
    from fsl_core.config.matrix import read_matrix
    from fsl_core.data.work import each
    from fsl_core.sweeping.plan import plan_sweep

    plan = plan_sweep(read_matrix(recipe, catalogue, overrides), with_data=False)
    rows = each(plan.rows, "trying rows")
    preflight_all(build_experiment(row.cells[0].recipe) for row in rows)
    axes = " x ".join(f"{len(axis.entries)} {axis.name}" for axis in plan.matrix.axes)
    typer.echo(f"{recipe}: ok. {len(plan.cells)} runs in {len(plan.rows)} rows ({axes})")
    for title, reason in plan.refused:
        typer.echo(printable(f"not run: {title}: {reason}"))


def _check_search(recipe: Path, catalogue: Catalogue, overrides: list[str]) -> None:
    from fsl_core.assembly.experiment import build_experiment
    from fsl_core.assembly.preflight import preflight_all
    from fsl_core.config.search import read_search
    from fsl_core.data.work import each
    from fsl_core.sweeping.search import checked_metric

    search = read_search(recipe, catalogue, overrides)
    search.searcher.build()
    checked_metric(search, with_data=False)
    preflight_all(build_experiment(cell.recipe) for cell in each(search.ends, "trying ranges"))
    told = ", ".join(
        f"{method.name} over {' and '.join(method.space)}" for method in search.methods
    )
    trials, name = search.options.trials, search.searcher.component.name
    typer.echo(printable(f"{recipe}: ok. {trials} trials of each method by {name}: {told}"))


def _say_checked(file: Path, recipe: Recipe, experiment: Experiment, memory: bool) -> None:
    from fsl_core.training.mode_choice import kept_execution

    adapter, backbone, episodes = (
        recipe.chosen[part,].name for part in ("adapter", "backbone", "episodes")
    )
    estimate = recipe.chosen["outer", "hypergradient"].name
    parameters = sum(p.numel() for p in experiment.learner.parameters())
    task = experiment.source.task
    typer.echo(
        f"{file}: ok. {adapter} on {backbone}, {parameters:,} parameters, "
        f"hypergradient {estimate}, {episodes} {task}"
    )
    if kept := kept_execution(experiment, choose_device("auto")):
        typer.echo(f"execution {kept.in_full}")
    if told := experiment.learner.adapter.advice():
        typer.echo(printable(f"note: adapter {adapter}: {told}"))
    if memory:
        _say_memory(experiment)


def _say_memory(experiment: Experiment) -> None:
    """What the process of a run takes at its fullest, without the data, by each execution."""
    from fsl_core.training.peak import predicted_peaks

    if not experiment.recipe.sections.outer.steps:
        typer.echo("memory: nothing is trained")
        return
    told = [f"{bytes_ / 1e9:.1f} GB by {how}" for how, bytes_ in predicted_peaks(experiment)]
    typer.echo(f"memory of the process without its data, about: {', '.join(told)}")


def _check_data(experiment: Experiment, whole: bool, as_json: bool) -> None:
    """Print what the data of a recipe is made of. Raises DataError if a run would be refused."""
    from fsl_core.cli.data import print_report
    from fsl_core.errors import DataError
    from fsl_core.reporting.data_report import report_data
    from fsl_core.runs.files import to_json

    report = report_data(experiment)
    if as_json:
        typer.echo(to_json(report.as_dict(), "data", indent=2))
    else:
        print_report(report, whole)
    if report.faults:
        raise DataError("\n".join(report.faults))


def _refuse_many(recipe: Path, command: str, what: str) -> None:
    from fsl_core.config.recipe import MANY
    from fsl_core.errors import RecipeError

    section = next(name for name, (_, runs_it) in MANY.items() if runs_it == command)
    raise RecipeError(
        f"{recipe}: {what} of one recipe, and this one has a `{section}:`. "
        f"`-s {section}=null` leaves it out"
    )


def schema(
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="a page to read in place of the schema")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes, for completion in editors, or a reference to read.

    It is made from everything that is installed.
    """
    from fsl_core.config.reference import recipe_reference
    from fsl_core.config.sections import recipe_schema
    from fsl_core.runs.files import to_json

    loaded = load_plugins(no_plugin, plugins_dir)
    as_json = to_json(recipe_schema(loaded.catalogue), "schema", indent=2)
    typer.echo(recipe_reference(loaded.catalogue) if markdown else as_json)


def plugins(
    available: Annotated[
        bool, typer.Option("--available", help="ask the package index of pip which there are")
    ] = False,
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    as_json: Json = False,
) -> None:
    """List plugins: version, status, seconds to load, hooks, what they offer, notes."""
    from fsl_core.cli.available import list_available
    from fsl_core.runs.files import to_json

    if available:
        list_available(as_json)
        return
    loaded = load_plugins(no_plugin, plugins_dir)
    if as_json:
        rows = [_described(plugin) for plugin in loaded.plugins]
        typer.echo(to_json(rows, "rows", indent=2))
        return
    print_table(
        ["plugin", "from", "hook API", "status", "seconds", "offers and observes", "notes"],
        [_plugin_row(plugin) for plugin in loaded.plugins],
    )


def _described(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": plugin.status,
        "reason": plugin.reason,
        "hook_api": plugin.hook_api,
        "hooks": plugin.hooks,
        "offers": _offers(plugin),
        "seconds": round(plugin.seconds, 3),
        "slow": plugin.slow,
        "notes": plugin.notes,
    }


def _plugin_row(plugin: Plugin) -> list[str]:
    seconds = f"{plugin.seconds:.2f}{' slow' if plugin.slow else ''}"
    observes = [hook for hook in plugin.hooks if not hook.startswith("fsl_register_")]
    return [
        plugin.name,
        f"{plugin.distribution} {plugin.version}",
        str(plugin.hook_api),
        f"{plugin.status}: {plugin.reason}" if plugin.reason else plugin.status,
        "" if plugin.status == "disabled" else seconds,
        ", ".join([*_offers(plugin), *observes]),
        "; ".join(plugin.notes),
    ]


def _offers(plugin: Plugin) -> list[str]:
    return [f"{kind} {name}" for kind, name in plugin.offers]


def list_components(
    kind: Annotated[str, typer.Argument(help="|".join(KINDS), show_default=False)],
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    as_json: Json = False,
) -> None:
    """List the adapters, backbones, episodes … that recipes can name."""
    from fsl_core.runs.files import to_json

    components = load_plugins(no_plugin, plugins_dir).catalogue.components(_kind(kind))
    rows = [
        {"name": c.name, "from": c.origin, "summary": (c.doc.splitlines() or [""])[0]}
        for c in components
    ]
    if as_json:
        typer.echo(to_json(rows, "rows", indent=2))
    else:
        print_table(["name", "from", "summary"], [list(row.values()) for row in rows])


def show(
    kind: Annotated[
        str,
        typer.Argument(
            help="adapter, backbone, episodes, hypergradient, weighting, optimizer, schedule, "
            "launcher, searcher, benchmark or store",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Argument(help="as in `fsl list`", show_default=False)],
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
    as_json: Json = False,
) -> None:
    """Explain one component: its options with types, defaults and meaning, and its source paper."""
    from fsl_core.config.reference import option_rows
    from fsl_core.runs.files import to_json

    component = load_plugins(no_plugin, plugins_dir).catalogue.get(_kind(kind), name)
    if as_json:
        described = {
            "name": name,
            "kind": component.kind,
            "from": component.origin,
            "doc": component.doc,
            "schema": component.options.model_json_schema(),
        }
        typer.echo(to_json(described, name, indent=2))
        return
    typer.echo(f"{component.kind} {name}, from {component.origin}\n\n{component.doc}\n")
    rows = [list(row) for row in option_rows(component)]
    if rows:
        print_table(["option", "type", "default", "meaning"], rows)
    else:
        typer.echo("It has no options.")


def doctor(no_plugin: NoPlugin = [], plugins_dir: PluginsDir = None, as_json: Json = False) -> None:
    """Print versions, devices, folders and plugin status for a bug report.

    The exit code is 1 if a plugin has failed.
    """
    import torch

    from fsl_core.data.cache import data_root
    from fsl_core.files.private import cache_dir
    from fsl_core.runs.environment import describe_environment
    from fsl_core.runs.files import to_json

    loaded = load_plugins(no_plugin, plugins_dir)
    report = describe_environment(loaded.plugins)
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report["devices"] = ["cpu", *cards]
    report["folders"] = {"cache": str(cache_dir()), "data": str(data_root(None))}
    report["failed"] = {p.name: p.reason for p in loaded.plugins if p.status == "failed"}
    report["notes"] = {p.name: "; ".join(p.notes) for p in loaded.plugins if p.notes}
    if as_json:
        typer.echo(to_json(report, "doctor", indent=2))
    else:
        for key, value in report.items():
            typer.echo(f"{key}: {_in_a_line(value)}")
    if report["failed"]:
        raise typer.Exit(1)


def _in_a_line(value: object) -> object:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return value or "none"


def _kind(word: str) -> Any:
    from fsl_core.errors import PluginError
    from fsl_core.text import suggest

    if word in KINDS.values():
        return word
    if word not in KINDS:
        kinds = suggest(word, [*KINDS, *KINDS.values()], label="Kinds")
        raise PluginError(f"{word}: not a kind of component. {kinds}")
    return KINDS[word]

"""Arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.text import printable

if TYPE_CHECKING:
    import torch

    from fsl_core.engine.ranks import Ranks
    from fsl_core.hooks.loader import Loaded


def find_recipe_file(given: Path) -> Path:
    """The file of a path, or of a shipped recipe's name; stderr says which."""
    from fsl_core.config.shipped import find_recipe, shipped_recipes

    file = find_recipe(given)
    if file != given:
        typer.echo(f"{given}: the recipe that comes with fsl-core, {file}", err=True)
    elif given.as_posix() in shipped_recipes():
        typer.echo(f"{given}: the file here, not the recipe that comes with fsl-core", err=True)
    return file


RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="recipe file (YAML), or a name that `fsl recipes` lists",
        callback=find_recipe_file,
        show_default=False,
        readable=False,
    ),
]


def _recipe_or_kept(given: Path) -> Path:
    """The recipe of a run directory, kept or not; else as for any recipe."""
    inside = given / "recipe.yaml"
    return inside if inside.is_file() else find_recipe_file(given)


RecipeOrKept = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE|KEPT",
        help="recipe file, its name, or a folder that `fsl keep` wrote",
        callback=_recipe_or_kept,
        show_default=False,
        readable=False,
    ),
]


def there(found: str, fitting: str) -> Callable[[Any], Any]:
    """A callback that says at once that nothing is there: to load what reads it takes seconds.

    Addresses such as hf:user/name are somewhere else, and pass.
    """

    def check(given: Path | list[Path] | None) -> Path | list[Path] | None:
        from fsl_core.errors import RunError
        from fsl_core.files.paths import store_and_address

        for path in given if isinstance(given, list) else [given] if given else []:
            with suppress(OSError):  # what cannot be looked at is for what reads it to say
                if not path.exists() and store_and_address(path) == ("", ""):
                    raise RunError(f"{path}: {found}. {fitting}")
        return given

    return check


run_there = there("no run here, and nothing else", "A directory that `fsl run` made")
RunDirectory = Annotated[  # whether it can be read is for what reads it to say, in one line
    Path,
    typer.Argument(
        metavar="RUN",
        help="directory of a run",
        callback=run_there,
        show_default=False,
        readable=False,
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="change a key: -s adapter.inner_lr=0.1"),
]
NoPlugin = Annotated[
    list[str],
    typer.Option("--no-plugin", metavar="NAME", help="leave out a plugin or distribution"),
]
PluginsDir = Annotated[
    Path | None, typer.Option("--plugins-dir", metavar="DIR", help="folder of one-file plugins")
]
NoLocalPlugin = Annotated[
    bool,
    typer.Option("--no-local-plugin", help="do not import fslplugin.py from beside the recipe"),
]
TrustPlugins = Annotated[
    bool,
    typer.Option("--trust-plugins", help="import one-file plugins that RUN names, known or not"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
RawCsv = Annotated[
    bool,
    typer.Option("--raw-csv", help="names as they are, even if a spreadsheet would compute them"),
]
Checkpoint = Annotated[str | None, typer.Option(help="best or last (default: as in the recipe)")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1")]


def load_plugins(
    no_plugin: list[str],
    plugins_dir: Path | None,
    recipe: Path | None = None,
    no_local_plugin: bool = False,
) -> Loaded:
    """Load plugins and say on stderr which ones failed, and what else there is to know of one."""
    from fsl_core.hooks.loader import load, plugin_files

    files = plugin_files(None if no_local_plugin else recipe, plugins_dir)
    if plugins_dir is not None:
        _tell_files(plugins_dir, files)
    loaded = load(no_plugin=no_plugin, files=files)
    for plugin in loaded.plugins:
        if plugin.status == "failed":
            warn(f"{plugin.title} failed to load: {plugin.reason}")
        for note in plugin.notes:
            warn(f"{plugin.title}: {note}")
    return loaded


def recorded_plugins(
    no_plugin: list[str], plugins_dir: Path | None, trust_plugins: bool
) -> dict[str, Any]:
    """How `open_run` and its like treat the one-file plugins that a run names, told on stderr."""
    from fsl_core.hooks.loader import plugin_files

    files = plugin_files(None, plugins_dir)
    if plugins_dir is not None:
        _tell_files(plugins_dir, files)
    return {
        "no_plugin": no_plugin,
        "plugins": files,
        "trust_plugins": trust_plugins,
        "tell": warn,
    }


def say(text: str) -> None:
    """A line on stdout. Names in it may be a stranger's, and a terminal would obey them."""
    typer.echo(printable(text, lines=True))


def warn(text: str) -> None:
    """A line on stderr, likewise."""
    typer.echo(printable(text, lines=True), err=True)


def _tell_files(plugins_dir: Path, taken: list[Path]) -> None:
    """Say on stderr which files of the folder are plugins, and which are passed over."""
    real = {file.resolve() for file in taken}
    here = sorted(plugins_dir.glob("*.py"))
    used = ", ".join(file.name for file in here if file.resolve() in real) or "no plugin"
    others = [file.name for file in here if file.resolve() not in real]
    named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    passed = f"; passed over: {named} (a test, or without hookimpl)" if others else ""
    warn(f"--plugins-dir {plugins_dir}: {used}{passed}")


def check_checkpoint(name: str | None) -> None:
    """Raise RunError for a checkpoint that no run has. None stands for the recipe's choice."""
    from fsl_core.errors import RunError

    if name not in (None, "best", "last"):
        raise RunError(f"--checkpoint {name}: no such checkpoint. best or last")


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """The torch device with that name; torch is imported only now.

    ranks: the processes that share the work, each with a device of its own; None: this one alone.
    """
    from fsl_core.engine import devices
    from fsl_core.engine.ranks import ALONE

    return devices.choose_device(name, ranks or ALONE)

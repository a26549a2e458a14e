"""The command that begins a plugin."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fsl_core.errors import PluginError

TEMPLATE = Path(__file__).parent / "templates" / "plugin"


class Kind(StrEnum):
    adapter = "adapter"
    hypergradient = "hypergradient"
    weighting = "weighting"
    backbone = "backbone"
    episodes = "episodes"
    launcher = "launcher"
    searcher = "searcher"


def add_commands(app: typer.Typer) -> None:
    app.command(name="new-plugin")(new_plugin)


def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="of the package, fsl-<words>", show_default=False)
    ],
    kind: Annotated[Kind, typer.Option(help="what it adds", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="folder that gets a folder NAME")
    ] = Path(),
    author: Annotated[
        str | None, typer.Option(help="for LICENSE and pyproject.toml (default: git's user.name)")
    ] = None,
) -> None:
    """Write a complete package with a working example.

    It has code, tests by the conformance kit, a recipe and CI.
    """
    _check_name(name, kind)
    target = out / name
    if target.exists():
        raise PluginError(f"{target}: exists. Another name, or another folder with --out")
    _fill_template(target, _answers(name, kind, author))
    component = name.removeprefix("fsl-")
    recipe = f"{target}/recipes/{component if kind is Kind.episodes else 'glyphs'}.yaml"
    command = {Kind.launcher: "sweep", Kind.searcher: "search"}.get(kind, "run")
    typer.echo(f"{target}: {kind.value} {component}. Next:")
    typer.echo(f"  pip install -e '{target}[testing]'\n  pytest {target}\n  fsl {command} {recipe}")


def _answers(name: str, kind: Kind, author: str | None) -> dict[str, Any]:
    """What the template asks for."""
    major, minor = _core_version()
    return {
        "name": name,
        "kind": kind.value,
        "author": author or _git_author(),
        "year": date.today().year,
        "core": f"{major}.{minor}",
        "next_core": f"{major}.{minor + 1}",
    }


def _fill_template(target: Path, answers: dict[str, Any]) -> None:
    try:
        import copier
    except ImportError as error:
        raise PluginError(
            "new-plugin: copier is not installed. pip install 'fsl-core[templates]'"
        ) from error
    try:
        copier.run_copy(str(TEMPLATE), target, data=answers, defaults=True, quiet=True)
    except OSError as error:
        raise PluginError(
            f"{target}: {error.strerror}. A folder that can be written to, with --out"
        ) from error


def _check_name(name: str, kind: Kind) -> None:
    from fsl_core.hooks.known import PACKAGES
    from fsl_core.hooks.loader import load

    if not re.fullmatch(r"fsl(-[a-z][a-z0-9]*)+", name):
        words = re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("fsl")).strip("-0123456789")
        raise PluginError(
            f"{name}: not a name of a plugin. fsl- and words of small letters with dashes between, "
            f"such as fsl-{words or 'mine'}"
        )
    if name == "fsl-core" or any(name in packages.values() for packages in PACKAGES.values()):
        raise PluginError(
            f"{name}: a package with that name exists. Another name, or a pull request to it"
        )
    loaded, component = load(), name.removeprefix("fsl-")
    if component in loaded.catalogue.names(kind.value):
        origin = loaded.catalogue.get(kind.value, component).origin
        raise PluginError(
            f"{name}: {kind.value} {component!r} is offered by {origin}. Another name"
        )


def _core_version() -> tuple[int, int]:
    import fsl_core

    major, minor, *_ = fsl_core.__version__.split(".")
    return int(major), int(minor)


def _git_author() -> str:
    """git's user.name, if there is one."""
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git
        return "The authors"
    return done.stdout.strip() or "The authors"

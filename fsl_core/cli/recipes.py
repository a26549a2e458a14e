"""The command about recipes that travel with core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fsl_core.cli.arguments import Json


def add_commands(app: typer.Typer) -> None:
    app.command()(recipes)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="print this one", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with fsl-core, or print one to copy.

    fsl recipes glyphs/5w1s-maml > mine.yaml
    """
    from fsl_core.cli.tables import print_table
    from fsl_core.config.shipped import find_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is not None:
        file = shipped[name] if name in shipped else find_recipe(Path(name))
        text = file.read_text(encoding="utf-8")
        told = json.dumps({**_described(name, file), "text": text}, indent=2) if as_json else text
        typer.echo(told, nl=as_json)
        return
    rows = [_described(*item) for item in shipped.items()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    cells = [[row["name"], f"fsl {row['command']}", row["summary"], _needs(row)] for row in rows]
    print_table(["name", "run by", "what it is", "needs"], cells)


def _described(name: str, file: Path) -> dict[str, Any]:
    from fsl_core.config.document import read_document
    from fsl_core.config.faults import unmet_requirement
    from fsl_core.config.recipe import command_of
    from fsl_core.config.shipped import summary_of

    data = read_document(file).data
    return {
        "name": name,
        "command": command_of(data),
        "summary": summary_of(file.read_text(encoding="utf-8")),
        "requires": {text: unmet_requirement(text) for text in data.get("requires", [])},
        "file": str(file),
    }


def _needs(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{text} (not installed)" if unmet else text for text, unmet in row["requires"].items()
    )

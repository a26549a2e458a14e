"""The command that writes features of pictures: embed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsl_core.cli.arguments import (
    Device,
    NoPlugin,
    Overrides,
    PluginsDir,
    choose_device,
    load_plugins,
    say,
    warn,
)

if TYPE_CHECKING:
    from fsl_core.config.recipe import Recipe
    from fsl_core.hooks.loader import Loaded

Out = Annotated[
    Path, typer.Option("--out", metavar="FILE", help=".safetensors file to write: x, y, split")
]


def add_commands(app: typer.Typer) -> None:
    app.command()(embed)


def embed(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="folder with one folder of pictures for each class, or a recipe",
            show_default=False,
            readable=False,
        ),
    ],
    out: Out,
    backbone: Annotated[
        str | None, typer.Option(help="name of the backbone, for a folder: torchvision, timm, …")
    ] = None,
    split: Annotated[
        list[str], typer.Option(help="train, validation or test, again for more; default: all")
    ] = [],
    overrides: Overrides = [],
    device: Device = "auto",
    no_plugin: NoPlugin = [],
    plugins_dir: PluginsDir = None,
) -> None:
    """Write the features of pictures by a frozen backbone, for use elsewhere.

    Options of the backbone are set as in a recipe: -s backbone.model=resnet18. They are computed
    once and kept in the cache.
    """
    from fsl_core.assembly.embedding import embed_splits
    from fsl_core.assembly.experiment import build_experiment
    from fsl_core.text import printable

    _require_splits(split)
    loaded = load_plugins(no_plugin, plugins_dir, None if source.is_dir() else source)
    checked = _recipe(source, backbone, overrides, loaded)
    experiment = build_experiment(checked, choose_device(device))
    found = embed_splits(experiment, split)  # type: ignore[arg-type]  # looked at above
    frozen: Any = experiment.learner.backbone
    found.write(out, frozen)
    for reason in found.left_out:
        warn(f"note: left out: {printable(reason)}")
    for note in frozen.notes:
        say(f"backbone: {note}")
    items, features = found.x.shape
    classes = "1 class" if len(found.classes) == 1 else f"{len(found.classes)} classes"
    say(f"{out}: {items} items of {classes}, {features} features each")


def _recipe(source: Path, backbone: str | None, overrides: list[str], loaded: Loaded) -> Recipe:
    from fsl_core.assembly.embedding import frozen_backbone, recipe_of
    from fsl_core.config.recipe import read_recipe
    from fsl_core.config.shipped import find_recipe
    from fsl_core.errors import RecipeError

    if not source.is_dir():
        if backbone is not None:
            raise RecipeError(
                f"--backbone {backbone}: {source} is a recipe and names its own. "
                f"-s backbone.name={backbone}, or a folder"
            )
        return read_recipe(
            find_recipe(source), loaded.catalogue, [*overrides, "backbone.frozen=true"]
        )
    if backbone is None:
        raise RecipeError(f"{source}: a folder, and no backbone. --backbone NAME")
    episodes: dict[str, Any] = {"name": "image-folder", "root": str(source)}
    named = recipe_of({"name": backbone}, episodes)
    given = read_recipe(named, loaded.catalogue, overrides)
    section = given.resolved()["backbone"]
    episodes["image_size"] = frozen_backbone(section, loaded.catalogue).item_shape[-1]
    return read_recipe(recipe_of({"name": backbone}, episodes), loaded.catalogue, overrides)


def _require_splits(split: list[str]) -> None:
    from fsl_core.data.source import SPLITS
    from fsl_core.errors import DataError

    for name in split:
        if name not in SPLITS:
            raise DataError(f"--split {name}: no such split. {', '.join(SPLITS)}")

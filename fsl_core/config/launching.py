"""The `launcher:` section of a sweep: which launcher starts its runs, with which options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from fsl_core.config.document import Document, set_key
from fsl_core.config.faults import in_file_order, validation_faults
from fsl_core.config.options import Component
from fsl_core.config.sections import Catalogue
from fsl_core.errors import PluginError, RecipeError
from fsl_core.launcher import Launcher

LAUNCHER = "launcher"
BY_DEFAULT = "local"


@dataclass(frozen=True)
class LauncherChoice:
    """A launcher with checked options."""

    component: Component
    section: BaseModel
    where: str

    def build(self, no_plugin: Sequence[str] = ()) -> Launcher:
        """The launcher. RecipeError if its constructor refuses the options."""
        try:
            return self.component.build(self.section, no_plugin=no_plugin)
        except ValueError as error:
            raise RecipeError(f"{self.where}: {error}") from error


def take_launcher(document: Document, catalogue: Catalogue) -> LauncherChoice:
    """The launcher that a recipe of a sweep names, taken out of its document.

    Raises RecipeError with every fault of the section.
    """
    section: Any = document.data.pop(LAUNCHER, None)
    where = document.where((LAUNCHER,))
    if section is None:
        section = {}
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, dict):
        raise RecipeError(
            f"{where}: found {json.dumps(section)}. A mapping such as {{name: local}}"
        )
    section = {"name": BY_DEFAULT, **section}
    try:
        component = catalogue.get("launcher", section["name"])
    except PluginError as error:
        raise RecipeError(f"{document.where((LAUNCHER, 'name'))}: {error}") from error
    fields: dict[str, Any] = {LAUNCHER: (component.options, ...)}
    model = create_model("recipe", **fields)
    try:
        checked: Any = model.model_validate_json(json.dumps({LAUNCHER: section}), strict=True)
    except ValidationError as error:
        written = Document(document.source, {LAUNCHER: section}, document.places)
        raise RecipeError(in_file_order(validation_faults(written, error, model))) from error
    return LauncherChoice(component, checked.launcher, where)


def choose_launcher(document: Document, name: str | None, jobs: int | None) -> None:
    """Set what `--launcher` and `--jobs` say, beside what a recipe and `-s` say.

    Options that a recipe has for another launcher are left out.
    """
    section = document.data.get(LAUNCHER)
    if isinstance(section, str):
        section = {"name": section}
    if section is None or (name and isinstance(section, dict) and section.get("name") != name):
        changed = {
            p[1]
            for p, at in document.places.items()
            if p[:1] == (LAUNCHER,) != p and at[:2] == "-s"
        }
        section = {key: value for key, value in (section or {}).items() if key in changed}
    document.data[LAUNCHER] = section
    for key, value, said in (("name", name, "--launcher"), ("jobs", jobs, "--jobs")):
        if value is not None:
            set_key(document, (LAUNCHER, key), value, said, said)

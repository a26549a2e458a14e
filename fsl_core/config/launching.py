"""Sections beside those of a run: which launcher starts the runs, which searcher proposes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from fsl_core.config.document import Document, set_key
from fsl_core.config.faults import in_file_order, validation_faults
from fsl_core.config.options import Component
from fsl_core.config.sections import Catalogue
from fsl_core.errors import PluginError, RecipeError

LAUNCHER = "launcher"
BY_DEFAULT = "local"


@dataclass(frozen=True)
class Choice:
    """A launcher or a searcher with checked options."""

    component: Component
    section: BaseModel
    where: str

    def build(self, **injected: Any) -> Any:
        """What it names. RecipeError if its constructor refuses the options."""
        try:
            return self.component.build(self.section, **injected)
        except ValueError as error:
            raise RecipeError(f"{self.where}: {error}") from error


def take_launcher(document: Document, catalogue: Catalogue) -> Choice:
    """The launcher that a recipe of a sweep names, taken out of its document.

    Raises RecipeError with every fault of the section.
    """
    section = document.data.pop(LAUNCHER, None)
    return choose(document, (LAUNCHER,), section, BY_DEFAULT, catalogue)


def choose(
    document: Document, path: tuple[str, ...], section: Any, by_default: str, catalogue: Catalogue
) -> Choice:
    """The component that a section names; the last part of its key path is the kind.

    section: what is written there: a mapping with a `name`, a name alone, or nothing.
    Raises RecipeError with every fault of the section.
    """
    kind: Any = path[-1]
    where = document.where(path)
    section = {"name": section} if isinstance(section, str) else {} if section is None else section
    if not isinstance(section, dict):
        raise RecipeError(
            f"{where}: found {json.dumps(section)}. A mapping such as {{name: {by_default}}}"
        )
    section = {"name": by_default, **section}
    try:
        component = catalogue.get(kind, section["name"])
    except PluginError as error:
        raise RecipeError(f"{document.where((*path, 'name'))}: {error}") from error
    whole, model = section, component.options
    for part in reversed(path):
        fields: dict[str, Any] = {part: (model, ...)}
        whole, model = {part: whole}, create_model("recipe", **fields)
    try:
        checked: Any = model.model_validate_json(json.dumps(whole), strict=True)
    except ValidationError as error:
        written = Document(document.source, whole, document.places)
        raise RecipeError(in_file_order(validation_faults(written, error, model))) from error
    for part in path:
        checked = getattr(checked, part)
    return Choice(component, checked, where)


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

"""A recipe, checked: every option against the constructor it goes to, every fault in one report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import ValidationError

from fsl_core.config.document import Document, KeyPath, Overrides, read_document
from fsl_core.config.faults import (
    encodes_as_utf8,
    huge_numbers,
    in_file_order,
    not_utf8,
    unmet_requirements,
    validation_faults,
)
from fsl_core.config.further import complete_further
from fsl_core.config.options import Component, Kind
from fsl_core.config.sections import DEFAULT_NAMES, ON, SECTIONS, Catalogue, recipe_model
from fsl_core.errors import PluginError, RecipeError
from fsl_core.files.paths import store_and_address
from fsl_core.text import printable

STORED: KeyPath = ("start_from", "run")
"""Where a recipe may name a run that lies in a store."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    sections: the pydantic model: `sections.outer.steps`, `sections.evaluate.episodes` and so on are
        typed and complete.
    chosen:   the component that each section names.
    """

    document: Document
    sections: Any
    chosen: Mapping[KeyPath, Component]

    def named(self, path: KeyPath) -> str:
        """`<where>: <class> of <distribution or file>`, for messages about a component."""
        component = self.chosen[path]
        name = getattr(component.factory, "__name__", component.name)
        return f"{self.document.where_built(path)}: {name} of {component.origin}"

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data that means the same anywhere.

        Defaults are written out, paths are absolute, and `requires` lists what it needs. Keys keep
        the order in which they were written; defaults follow in the order of the schema.
        """
        whole = _plain(self.sections.model_dump(mode="python"))
        data = {key: value for key, value in whole.items() if value is not None}
        data["requires"] = self._requirements()
        return _in_written_order(data, self.document.data)

    def _requirements(self) -> list[str]:
        """What the author requires, and the distributions of the plugins that the recipe names.

        One without a range gets that of the installed version: `fsl-maml` becomes `fsl-maml>=0.1`.
        """
        needed = {}
        for component in self.chosen.values():
            if distribution := _distribution(component.origin):
                needed[canonicalize_name(distribution)] = component.origin
        listed = []
        for text in self.sections.requires:
            requirement = Requirement(text)
            origin = needed.pop(canonicalize_name(requirement.name), "")
            bare = str(requirement) == requirement.name
            listed.append(_range_of(origin) if origin and bare else text)
        return [*listed, *map(_range_of, needed.values())]


def _distribution(origin: str) -> str:
    """The distribution in a component's origin, empty for core's own and for one-file plugins."""
    name, _, version = origin.rpartition(" ")
    try:
        installed = bool(name) and metadata.version(name) == version
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    return name if installed and name != "fsl-core" else ""


def _range_of(origin: str) -> str:
    """`fsl-maml>=0.1` for `fsl-maml 0.1.3`; a version before a release is named in full."""
    name, _, text = origin.rpartition(" ")
    version = Version(text)
    least = version.public if version.is_prerelease else f"{version.major}.{version.minor}"
    return f"{name}>={least}"


def _in_written_order(data: Any, written: Any) -> Any:
    if isinstance(data, list) and isinstance(written, list) and len(data) == len(written):
        return [_in_written_order(*pair) for pair in zip(data, written, strict=True)]
    if not isinstance(data, dict) or not isinstance(written, dict):
        return data
    keys = [*(key for key in written if key in data), *(key for key in data if key not in written)]
    return {key: _in_written_order(data[key], written.get(key)) for key in keys}


def read_recipe(
    recipe: Path | Mapping[str, Any], catalogue: Catalogue, overrides: Overrides = ()
) -> Recipe:
    """Read and check a recipe of one run: a file, or its data.

    Raises RecipeError, which lists every fault with file, line and key.
    """
    document = read_document(recipe, overrides, SECTIONS)
    return check_document(document, catalogue)


MANY = {"matrix": ("a matrix of many runs", "sweep"), "search": ("a search of many runs", "search")}
"""Sections that make many runs of a recipe: what each is, and the command that runs them."""


def command_of(data: Mapping[str, Any]) -> str:
    """The command of `fsl` that runs a recipe: run, sweep or search."""
    commands = (command for section, (_, command) in MANY.items() if data.get(section) is not None)
    return next(commands, "run")


def _refuse_many(document: Document) -> None:
    for section, (what, command) in MANY.items():
        if document.data.get(section) is not None:
            raise RecipeError(
                f"{document.where((section,))}: {what}. `fsl {command} {document.source}` runs "
                f"them all, `-s {section}=null` leaves it out"
            )


def check_document(document: Document, catalogue: Catalogue) -> Recipe:
    """The checked recipe of one run.

    Raises RecipeError, which lists every fault with file, line and key.
    """
    _refuse_many(document)
    if isinstance(run := document.data.get("start_from"), str):
        document.data["start_from"] = {"run": run}
    found, faults = _choose(document, catalogue)
    faults += unmet_requirements(document)
    faults += huge_numbers(document)
    if wrong := not_utf8(document):  # JSON cannot carry such a text to the model
        raise RecipeError(in_file_order([*faults, *wrong]))
    model = recipe_model(catalogue, found)
    # `expect:` with nothing below it is a section that is left out.
    document.data = {key: value for key, value in document.data.items() if value is not None}
    try:
        sections = model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        faults += validation_faults(document, error, model)
    if faults:
        raise RecipeError(in_file_order(faults))
    chosen = {path: component for path, component in found.items() if component}
    complete_further(document, sections, chosen)
    return Recipe(document, sections, chosen)


def _choose(
    document: Document, catalogue: Catalogue
) -> tuple[dict[KeyPath, Component | None], list[str]]:
    """The component of each section, None if there is no such component; and what is wrong."""
    chosen: dict[KeyPath, Component | None] = {}
    faults: list[str] = []
    waiting: list[tuple[KeyPath, Kind]] = [*SECTIONS.items(), *_places(document, ON)]
    while waiting:
        path, kind = waiting.pop(0)
        section = _section(document, path)
        if section is None:
            continue
        chosen[path] = None
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            example = section if isinstance(section, str) else _example(catalogue, kind)
            faults.append(
                f"{document.where(path)}: no `name`. A mapping such as {{name: {example}}}"
            )
            continue
        try:
            component = chosen[path] = catalogue.get(kind, section["name"])
        except PluginError as error:
            faults.append(f"{document.where((*path, 'name'))}: {error}")
        else:
            for option in component.lists:
                waiting += _places(document, (*path, option))
    if store := store_and_address(_section(document, STORED) or "")[0]:
        try:
            chosen[STORED] = catalogue.get("store", store)
        except PluginError as error:
            faults.append(f"{document.where(STORED)}: {error}")
    return chosen, faults


def _section(document: Document, path: KeyPath) -> Any:
    """What is written at a key path; a component's name where there is a default."""
    section: Any = document.data
    for part in path:
        if isinstance(part, int):  # of a list that is there: its entry may be empty
            section = "" if section[part] is None else section[part]
        else:
            section = section.get(part) if isinstance(section, dict) else None
    if section is None and path in DEFAULT_NAMES:  # `optimizer:` with nothing below it, too
        return {"name": DEFAULT_NAMES[path]}
    return section


def _places(document: Document, path: KeyPath) -> list[tuple[KeyPath, Kind]]:
    """The places of a list of sources."""
    listed = _section(document, path)
    return [((*path, i), "episodes") for i in range(len(listed) if isinstance(listed, list) else 0)]


def _example(catalogue: Catalogue, kind: Kind) -> str:
    return next((component.name for component in catalogue.components(kind)), "...")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _absolute(value) if isinstance(value, Path) else value


def _absolute(path: Path) -> str:
    elsewhere = any(store_and_address(path))
    text = str(path if elsewhere else path.expanduser().absolute())
    if not encodes_as_utf8(text):
        raise RecipeError(
            f"recipe: path '{printable(text)}' is not UTF-8, and no recipe can name it. "
            "Another name for that folder"
        )
    return text

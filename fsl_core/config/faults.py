"""What is wrong with a recipe, one line a fault, each with file, line and key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BaseModel, ValidationError

from fsl_core.config.document import Document, KeyPath, dotted
from fsl_core.config.sections import SECTIONS, as_model, below, section_model
from fsl_core.text import printable, suggest


def unmet_requirements(document: Document) -> list[str]:
    """Faults of `requires`: what is not installed, or not in a version that fits."""
    listed = document.data.get("requires")
    if not isinstance(listed, list):
        return []
    # An entry that is not a text is a fault of its type, which the model reports.
    asked = [(i, unmet_requirement(text)) for i, text in enumerate(listed) if isinstance(text, str)]
    return [f"{document.where(('requires', i))}: {unmet}" for i, unmet in asked if unmet]


def unmet_requirement(text: str) -> str:
    """Why a distribution with a version range is not met by what is installed; empty if it is."""
    try:
        requirement = Requirement(text)
        version = metadata.version(requirement.name)
    except InvalidRequirement:
        fitting = "A distribution with a version range, such as fsl-maml>=0.1"
        return f"{text!r} is not a requirement. {fitting}"
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed. pip install '{text}'"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is installed. pip install --upgrade '{text}'"


def huge_numbers(document: Document) -> list[str]:
    """Whole numbers that no option can take, because they do not fit into 64 bits."""
    fit = "A number that 64 bits can hold"
    return [
        f"{document.where(path)}: found {value}. {fit}"
        for path, value in _values(document.data)
        if isinstance(value, int) and abs(value) >= 2**63
    ]


def not_utf8(document: Document) -> list[str]:
    """Texts that are not UTF-8, such as names of files with other bytes in them."""
    fit = "Text in UTF-8: another name for that file or folder"
    return [
        f"{document.where(path)}: found '{printable(value)}'. {fit}"
        for path, value in _values(document.data)
        if isinstance(value, str) and not encodes_as_utf8(value)
    ]


def _values(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value below a node that is not a list or a mapping, with its key path."""
    if not isinstance(node, dict | list):
        yield path, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _values(value, (*path, key))


def encodes_as_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python keeps other bytes of a name in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def validation_faults(
    document: Document, error: ValidationError, model: type[BaseModel]
) -> list[str]:
    """What pydantic has found, in our words, with the place of each key."""
    expected: dict[KeyPath, list[str]] = {}
    faults = []
    for fault in error.errors(include_url=False):
        path = _written_path(document.data, fault)
        if fault["type"] == "extra_forbidden":
            faults.append(f"{document.where(path)}: {_unknown_key(document, path, model)}")
        elif fault["type"] == "missing":
            faults.append(f"{document.where(path)}: absent. It is required")
        else:
            fitting = re.sub(r"^(Input should be|\w+ should have|Value error,) ", "", fault["msg"])
            expected.setdefault(path, []).append(fitting)
    for path, alternatives in expected.items():
        if any(other[: len(path)] == path for other in expected if other != path):
            continue  # the fault is further down: a wrong item also makes its list too short
        found = json.dumps(_at(document.data, path))
        fitting = ", or ".join(dict.fromkeys(alternatives))
        if document.place(path).startswith("-s ") and fitting == "a valid string":
            fitting += f", such as '{json.dumps(found)}'"
        faults.append(f"{document.where(path)}: found {found}. Expected {fitting}")
    return faults


def _written_path(data: Any, fault: Mapping[str, Any]) -> KeyPath:
    """The key path as the recipe has it, without pydantic's names for the members of a union."""
    path: KeyPath = ()
    for part in fault["loc"]:
        there = _holds(data, part)
        if not there and fault["type"] != "missing":
            break
        path += (part,)
        data = data[part] if there else None
    return path


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and part in range(len(data))


def _unknown_key(document: Document, path: KeyPath, model: type[BaseModel]) -> str:
    owner, options = _owner(path[:-1], model)
    named = document.place((*path[:-1], "name"))
    if named.startswith("-s ") and named != document.place(path):
        owner += f" ({named})"
    key = str(path[-1])
    elsewhere = _sections_with(key, model) if len(path) == 1 else []
    if elsewhere:
        return f"{owner} has no such option. Did you mean {' or '.join(elsewhere)}?"
    return f"{owner} has no such option. {suggest(key, options.model_fields, label='Its options')}"


def _owner(path: KeyPath, model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """What the keys below a path belong to, in words, and its model."""
    owner, found = "the recipe", model
    kind: Any = model
    for depth, part in enumerate(path):
        kind = below(kind, part)
        if section := as_model(kind):
            found, owner = section, f"section {dotted(path[: depth + 1])!r}"
    part_of, _, name = found.__name__.partition(".")  # `adapter.maml`, as options.py names a model
    kinds = (*SECTIONS.values(), "launcher", "searcher")
    return (f"{part_of} {name!r}" if part_of in kinds else owner), found


def _sections_with(key: str, model: type[BaseModel], above: str = "") -> list[str]:
    """Key paths of the sections of this recipe that have such an option: `outer.steps`."""
    found = []
    for name in model.model_fields:
        if section := section_model(model, name):
            if key in section.model_fields and key != "name":
                found.append(f"{above}{name}.{key}")
            found += _sections_with(key, section, f"{above}{name}.")
    return found


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def in_file_order(faults: list[str]) -> list[str]:
    """Faults by the line that each begins with."""

    def line(fault: str) -> int:
        place = fault.split(": ", 1)[0].rpartition(":")[2]
        return int(place) if place.isdigit() else 0

    return sorted(faults, key=line)

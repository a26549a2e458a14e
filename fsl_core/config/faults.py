"""What is wrong with a recipe, one line a fault, each with file, line and key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BaseModel, ValidationError

from fsl_core.config.document import Document, KeyPath
from fsl_core.config.sections import SECTIONS
from fsl_core.text import printable, suggest


def unmet_requirements(document: Document) -> list[str]:
    listed = document.data.get("requires")
    return [
        f"{document.where(('requires', i))}: {unmet}"
        for i, text in enumerate(listed if isinstance(listed, list) else [])
        if isinstance(text, str) and (unmet := unmet_requirement(text))  # no text: its type's fault
    ]


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


def huge_numbers(document: Document, node: Any, path: KeyPath = ()) -> list[str]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [
            fault for key, value in items for fault in huge_numbers(document, value, (*path, key))
        ]
    huge = isinstance(node, int) and abs(node) >= 2**63
    return [f"{document.where(path)}: found {node}. A number that 64 bits can hold"] if huge else []


def not_utf8(document: Document, node: Any, path: KeyPath = ()) -> list[str]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [fault for key, value in items for fault in not_utf8(document, value, (*path, key))]
    wrong = isinstance(node, str) and not encodes_as_utf8(node)
    fit = "Text in UTF-8: another name for that file or folder"
    return [f"{document.where(path)}: found '{printable(node)}'. {fit}"] if wrong else []


def encodes_as_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def validation_faults(
    document: Document, error: ValidationError, model: type[BaseModel]
) -> list[str]:
    expected: dict[KeyPath, list[str]] = {}
    faults = []
    for fault in error.errors(include_url=False):
        path = _written_path(document.data, fault)
        if fault["type"] == "extra_forbidden":
            faults.append(f"{document.where(path)}: {_unknown_key(document, path, model)}")
        elif fault["type"] == "missing":
            faults.append(f"{document.where(path)}: absent. It is required")
        else:
            expected.setdefault(path, []).append(
                re.sub(r"^(Input should be|\w+ should have|Value error,) ", "", fault["msg"])
            )
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
    """The key path as the recipe has it: pydantic's names for the members of a union are left out."""
    path: KeyPath = ()
    for part in fault["loc"]:
        absent = not (
            part in data
            if isinstance(data, dict)
            else isinstance(data, list) and part in range(len(data))
        )
        if absent and fault["type"] != "missing":
            break
        path += (part,)
        data = None if absent else data[part]
    return path


def _unknown_key(document: Document, path: KeyPath, model: type[BaseModel]) -> str:
    owner, options = "the recipe", model
    for part in path[:-1]:
        options = options.model_fields[str(part)].annotation
        owner = (
            options.__name__.replace(".", " ", 1)
            if "." in options.__name__
            else f"section '{part}'"
        )
    kind, _, name = owner.partition(" ")
    owner = f"{kind} {name!r}" if kind in SECTIONS.values() else owner
    named = document.place((*path[:-1], "name"))
    if named.startswith("-s ") and named != document.place(path):
        owner += f" ({named})"
    key = str(path[-1])
    elsewhere = _sections_with(key, model) if len(path) == 1 else []
    if elsewhere:
        return f"{owner} has no such option. Did you mean {' or '.join(elsewhere)}?"
    return f"{owner} has no such option. {suggest(key, options.model_fields, label='Its options')}"


def _sections_with(key: str, model: type[BaseModel], above: str = "") -> list[str]:
    """Key paths of the sections of this recipe that have such an option: `outer.steps`."""
    found = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
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

"""The `matrix:` section of a recipe: lists of values at key paths, whose combinations are recipes of their own."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fsl_core.config.document import Document, KeyPath, Overrides, by_name, read_document, set_key
from fsl_core.config.faults import in_file_order
from fsl_core.config.recipe import Recipe, check_document
from fsl_core.config.sections import SECTIONS, Catalogue
from fsl_core.errors import RecipeError
from fsl_core.text import suggest

SEED = "seed"
RESERVED = ("exclude", "baseline")
MOST_COMBINATIONS = 4096
"""Six axes of twenty values, written in six lines, would be 64 million recipes to check."""


@dataclass(frozen=True)
class Entry:
    """One value of an axis.

    label: short and unique within the axis.    value: as the recipe has it, or None where the entry is named by a label.
    changes: what it sets: (key path, value, where that is written).
    """

    label: str
    value: Any
    changes: tuple[tuple[KeyPath, Any, KeyPath], ...]


@dataclass(frozen=True)
class Axis:
    """name: a key path, or any word where the entries are named mappings of key paths."""

    name: str
    entries: tuple[Entry, ...]

    def selected(self, selectors: Any) -> set[str]:
        """Labels of the entries that one selector, or a list of them, means: by label, else by value or name of component."""
        found: set[str] = set()
        for selector in selectors if isinstance(selectors, list) else [selectors]:
            by_label = {entry.label for entry in self.entries if entry.label == str(selector)}
            found |= by_label or {
                entry.label for entry in self.entries if _means(selector, entry.value)
            }
        return found


@dataclass(frozen=True)
class Cell:
    """One combination.

    labels: of its entry on each axis.    digest: of its whole recipe, so that a changed recipe is another cell.
    """

    labels: Mapping[str, str]
    recipe: Recipe

    @property
    def title(self) -> str:
        """`maml, uniform, seed 0`"""
        return ", ".join(title(axis, label) for axis, label in self.labels.items())

    @property
    def digest(self) -> str:
        return recipe_digest(self.recipe.resolved())

    @property
    def directory_name(self) -> str:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.title).strip("-.")
        return f"{words[:80] or 'run'}-{self.digest}"


def title(axis: str, label: str) -> str:
    """A label with the last word of its key path, where the label alone would not tell: `seed 0`, but `maml`."""
    return (
        label
        if re.match(r"[A-Za-z]", label) and label not in ("True", "False", "None")
        else f"{axis.split('.')[-1]} {label}"
    )


def recipe_digest(resolved: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of all that a run depends on."""
    data = {key: value for key, value in resolved.items() if key not in ("requires", "expect")}
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=5).hexdigest()


@dataclass(frozen=True)
class Matrix:
    """baseline: a label or labels for some axes; empty: the first row."""

    document: Document
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    baseline: Mapping[str, Any]

    def selects(self, selection: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
        return _selects(self.axes, selection, labels)


def has_matrix(path: Path, overrides: Iterable[str] = ()) -> bool:
    return read_document(path, overrides, SECTIONS).data.get("matrix") is not None


def read_matrix(
    recipe: Path | Mapping[str, Any], catalogue: Catalogue, overrides: Overrides = ()
) -> Matrix:
    """Read a recipe with a `matrix:` and check every combination.

    RecipeError lists every fault of every combination once.
    """
    document = read_document(recipe, overrides, SECTIONS)
    section = document.data.pop("matrix", None)
    where = document.where(("matrix",))
    if section is None:
        raise RecipeError(
            f"{document.source}: no `matrix:`, so there is nothing to sweep. matrix: {{adapter: [...], seed: [0, 1]}}"
        )
    if not isinstance(section, dict) or not [name for name in section if name not in RESERVED]:
        raise RecipeError(
            f"{where}: found {json.dumps(section)}. Lists at key paths, such as {{adapter: [...], seed: [0, 1]}}"
        )
    if document.data.get("expect"):
        raise RecipeError(
            f"{document.where(('expect',))}: figures of one run, and a matrix is of many. One of the two"
        )
    faults: list[str] = []
    axes = tuple(
        _axis(document, name, value, faults)
        for name, value in section.items()
        if name not in RESERVED
    )
    faults += _shared_keys(document, axes)
    excluded = _selections(document, axes, section.get("exclude"), faults)
    baseline = _baseline(document, axes, section.get("baseline"), faults)
    if faults:
        raise RecipeError(in_file_order(faults))
    number = math.prod(len(axis.entries) for axis in axes)
    if number > MOST_COMBINATIONS:
        raise RecipeError(
            f"{where}: {number} combinations, with those that `exclude` names. "
            f"At most {MOST_COMBINATIONS} in one matrix"
        )
    kept = [
        entries
        for entries in product(*(axis.entries for axis in axes))
        if not any(_selects(axes, selection, _labels(axes, entries)) for selection in excluded)
    ]
    if not kept:
        raise RecipeError(
            f"{document.where(('matrix', 'exclude'))}: leaves no combination. At least one"
        )
    return Matrix(document, axes, tuple(_checked(document, axes, kept, catalogue)), baseline)


def _means(selector: Any, value: Any) -> bool:
    name = value.get("name") if isinstance(value, dict) else None
    return value is not None and selector in (value, name)


def _labels(axes: Iterable[Axis], entries: Iterable[Entry]) -> dict[str, str]:
    return {axis.name: entry.label for axis, entry in zip(axes, entries, strict=True)}


def _axis(document: Document, name: str, value: Any, faults: list[str]) -> Axis:
    written = ("matrix", name)
    if isinstance(value, list) and value:
        path = tuple(name.split("."))
        values = [by_name(v) if path in SECTIONS else v for v in value]
        labels = _unique_labels(values)
        entries = [
            Entry(label, v, ((path, v, (*written, i)),))
            for i, (label, v) in enumerate(zip(labels, values, strict=True))
        ]
    elif (
        isinstance(value, dict) and value and all(isinstance(v, dict) and v for v in value.values())
    ):
        entries = [
            Entry(
                label,
                None,
                tuple(_change(key, v, (*written, label, key)) for key, v in changes.items()),
            )
            for label, changes in value.items()
        ]
    else:
        expected = f"A list of values for {name}, or named mappings of key paths such as {{short: {{outer.steps: 100}}}}"
        faults.append(f"{document.where(written)}: found {json.dumps(value)}. {expected}")
        entries = []
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    faults += [
        f"{document.where(written)}: {label} is there twice. Every value once" for label in twice
    ]
    return Axis(name, tuple(entries))


def _change(key: str, value: Any, written: KeyPath) -> tuple[KeyPath, Any, KeyPath]:
    path = tuple(key.split("."))
    return path, by_name(value) if path in SECTIONS else value, written


def _unique_labels(values: list[Any]) -> list[str]:
    names = [value.get("name") if isinstance(value, dict) else None for value in values]
    return [_label(value, names.count(name) > 1) for value, name in zip(values, names, strict=True)]


def _label(value: Any, in_full: bool) -> str:
    if not isinstance(value, dict):
        return str(value) if not isinstance(value, list) else json.dumps(value)
    if not isinstance(value.get("name"), str):
        return json.dumps(value)
    options = [f"{key}={_label(option, True)}" for key, option in value.items() if key != "name"]
    return " ".join([value["name"], *options]) if in_full else value["name"]


def _shared_keys(document: Document, axes: Iterable[Axis]) -> Iterator[str]:
    owner: dict[KeyPath, str] = {}
    for axis in axes:
        for path in {path for entry in axis.entries for path, *_ in entry.changes}:
            if path in owner:
                key = ".".join(path)
                yield f"{document.where(('matrix', axis.name))}: {key} is set by {owner[path]} too. One axis for each key"
            owner[path] = axis.name


def _selections(
    document: Document, axes: tuple[Axis, ...], written: Any, faults: list[str]
) -> list[dict[str, Any]]:
    if written is None:
        return []
    if not isinstance(written, list):
        faults.append(
            f"{document.where(('matrix', 'exclude'))}: found {json.dumps(written)}. A list of mappings such as {{adapter: maml}}"
        )
        return []
    for i, selection in enumerate(written):
        faults += _selection_faults(document, axes, selection, ("matrix", "exclude", i))
    return written


def _baseline(
    document: Document, axes: tuple[Axis, ...], written: Any, faults: list[str]
) -> dict[str, Any]:
    if written is None:
        return {}
    faults += _selection_faults(document, axes, written, ("matrix", "baseline"))
    return written


def _selection_faults(
    document: Document, axes: tuple[Axis, ...], selection: Any, path: KeyPath
) -> Iterator[str]:
    if not isinstance(selection, dict) or not selection:
        yield f"{document.where(path)}: found {json.dumps(selection)}. A mapping from axes to values, such as {{adapter: maml}}"
        return
    by_name = {axis.name: axis for axis in axes}
    for name, wanted in selection.items():
        where = document.where((*path, name))
        if name not in by_name:
            yield f"{where}: no axis of this matrix. {suggest(name, by_name, label='Axes')}"
            continue
        entries = by_name[name].entries
        for selector in wanted if isinstance(wanted, list) else [wanted]:
            if entries and not by_name[name].selected(selector):
                labels = ", ".join(entry.label for entry in entries)
                yield f"{where}: {_label(selector, True)} is no value of {name}. One of {labels}"


def _selects(axes: Iterable[Axis], selection: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    chosen = (axis for axis in axes if axis.name in selection)
    return all(labels[axis.name] in axis.selected(selection[axis.name]) for axis in chosen)


def _checked(
    document: Document,
    axes: tuple[Axis, ...],
    combinations: list[tuple[Entry, ...]],
    catalogue: Catalogue,
) -> list[Cell]:
    cells, found = [], FaultsOfCells(len(combinations))
    for entries in combinations:
        labels = _labels(axes, entries)
        try:
            cells.append(Cell(labels, check_document(_combined(document, entries), catalogue)))
        except RecipeError as error:
            found.add(error.faults, Cell(labels, None).title)
    found.raise_any()
    by_digest: dict[str, Cell] = {}
    for cell in cells:
        if (other := by_digest.setdefault(cell.digest, cell)) is not cell:
            where = document.where(("matrix",))
            raise RecipeError(
                f"{where}: {other.title} and {cell.title} are one and the same run. Leave one out"
            )
    return cells


def _combined(document: Document, entries: Iterable[Entry]) -> Document:
    combined = Document(document.source, copy.deepcopy(document.data), dict(document.places))
    changes = [change for entry in entries for change in entry.changes]
    for path, value, written in sorted(
        changes, key=lambda change: len(change[0])
    ):  # a section before its keys
        set_key(combined, path, copy.deepcopy(value), document.place(written))
        below = {
            p[len(written) :]: place
            for p, place in document.places.items()
            if p[: len(written)] == written
        }
        combined.places |= {(*path, *rest): place for rest, place in below.items()}
    return combined


class FaultsOfCells:
    """Faults of many combinations, each once, with the combinations that have it."""

    def __init__(self, cells: int):
        self._cells, self._titles = cells, {}

    def add(self, faults: Iterable[str], title: str) -> None:
        for fault in faults:
            self._titles.setdefault(fault, []).append(title)

    def raise_any(self) -> None:
        """RecipeError with all of them, if there are any."""
        if self._titles:
            raise RecipeError(in_file_order([self._told(*item) for item in self._titles.items()]))

    def _told(self, fault: str, titles: list[str]) -> str:
        if len(titles) == self._cells:
            return fault
        more = f"; and {len(titles) - 1} more" if len(titles) > 1 else ""
        return f"{fault} [{titles[0]}{more}]"

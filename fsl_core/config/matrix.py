"""The `matrix:` section of a recipe: lists of values at key paths.

Every combination of the values is a recipe of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from fsl_core.config.document import (
    Document,
    KeyPath,
    Overrides,
    by_name,
    dotted,
    read_document,
    set_key,
)
from fsl_core.config.faults import in_file_order
from fsl_core.config.launching import LAUNCHER, Choice, choose_launcher, take_launcher
from fsl_core.config.recipe import MANY, Recipe, check_document
from fsl_core.config.sections import SECTIONS, Catalogue
from fsl_core.errors import RecipeError
from fsl_core.text import suggest

SEED = "seed"
RESERVED = ("exclude", "baseline")
MOST_COMBINATIONS = 4096
"""Six axes of twenty values, written in six lines, would be 64 million recipes to check."""


Change = tuple[tuple[str, ...], Any, KeyPath]
"""(key path, value, the key path in the document where the value is written)."""


@dataclass(frozen=True)
class Entry:
    """One value of an axis.

    label:   short and unique within the axis.
    value:   as the recipe has it, or None if the entry is a label with a mapping of key paths.
    changes: what it sets: (key path, value, where that is written).
    """

    label: str
    value: Any
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Axis:
    """An axis of the matrix: what changes from run to run.

    name: a key path, or any word if the entries are named mappings of key paths.
    """

    name: str
    entries: tuple[Entry, ...]

    def selected(self, selectors: Any) -> set[str]:
        """Labels of the entries that one selector, or a list of them, means.

        A selector is a label, or else a value or the name of a component.
        """
        found: set[str] = set()
        for selector in selectors if isinstance(selectors, list) else [selectors]:
            by_label = {entry.label for entry in self.entries if entry.label == str(selector)}
            by_value = {entry.label for entry in self.entries if _means(selector, entry.value)}
            found |= by_label or by_value
        return found


@dataclass(frozen=True)
class Cell:
    """One combination.

    labels: of its entry on each axis.
    digest: of its whole recipe, so that a changed recipe is another cell.
    """

    labels: Mapping[str, str]
    recipe: Recipe

    @property
    def title(self) -> str:
        """`maml, uniform, seed 0`"""
        return _title_of(self.labels)

    @cached_property
    def digest(self) -> str:
        """`recipe_digest` of the whole recipe."""
        return recipe_digest(self.recipe.resolved())

    @property
    def directory_name(self) -> str:
        """A name for the folder of the run: readable, and unique by the digest."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.title).strip("-.")
        return f"{words[:80] or 'run'}-{self.digest}"


def title(axis: str, label: str) -> str:
    """A label, with the last word of its key path if the label alone says too little.

    >>> title("adapter", "maml"), title("outer.steps", "100")
    ('maml', 'steps 100')
    """
    if re.match(r"[A-Za-z]", label) and label not in ("True", "False", "None"):
        return label
    return f"{axis.split('.')[-1]} {label}"


def _title_of(labels: Mapping[str, str]) -> str:
    return ", ".join(title(axis, label) for axis, label in labels.items())


def recipe_digest(resolved: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of all that a run depends on."""
    data = {key: value for key, value in resolved.items() if key not in ("requires", "expect")}
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=5).hexdigest()


@dataclass(frozen=True)
class Matrix:
    """A recipe of many runs: its axes, and a cell for each combination that is not excluded.

    baseline: a label or labels for some axes; empty: the first row.
    launcher: what starts the runs.
    """

    document: Document
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    baseline: Mapping[str, Any]
    launcher: Choice

    def selects(self, selection: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
        """Whether a selection, such as `baseline`, means the combination with these labels."""
        return _selects(self.axes, selection, labels)


def has_matrix(path: Path, overrides: Iterable[str] = ()) -> bool:
    """Whether a recipe file describes many runs."""
    return read_document(path, overrides, SECTIONS).data.get("matrix") is not None


def read_matrix(
    recipe: Path | Mapping[str, Any],
    catalogue: Catalogue,
    overrides: Overrides = (),
    launcher: str | None = None,
    jobs: int | None = None,
) -> Matrix:
    """Read a recipe with a `matrix:` and check every combination.

    launcher, jobs: what is said of the section `launcher`, beside recipe and overrides.

    RecipeError lists every fault of every combination once.
    """
    document = read_document(recipe, overrides, {*SECTIONS, (LAUNCHER,)})
    section = document.data.pop("matrix", None)
    where = document.where(("matrix",))
    if section is None and document.data.get("search") is not None:
        what, command = MANY["search"]
        raise RecipeError(
            f"{document.where(('search',))}: {what}. `fsl {command} {document.source}` runs them"
        )
    if section is None:
        raise RecipeError(
            f"{document.source}: no `matrix:`, so there is nothing to sweep. "
            "matrix: {adapter: [...], seed: [0, 1]}"
        )
    if not isinstance(section, dict) or not [name for name in section if name not in RESERVED]:
        raise RecipeError(
            f"{where}: found {json.dumps(section)}. "
            "Lists at key paths, such as {adapter: [...], seed: [0, 1]}"
        )
    if document.data.get("expect"):
        raise RecipeError(
            f"{document.where(('expect',))}: figures of one run, and a matrix is of many. "
            "One of the two"
        )
    choose_launcher(document, launcher, jobs)
    chosen = take_launcher(document, catalogue)
    faults: list[str] = []
    written = {name: value for name, value in section.items() if name not in RESERVED}
    axes = tuple(_axis(document, name, value, faults) for name, value in written.items())
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

    def is_excluded(entries: tuple[Entry, ...]) -> bool:
        labels = _labels(axes, entries)
        return any(_selects(axes, selection, labels) for selection in excluded)

    every = product(*(axis.entries for axis in axes))
    kept = [entries for entries in every if not is_excluded(entries)]
    if not kept:
        raise RecipeError(
            f"{document.where(('matrix', 'exclude'))}: leaves no combination. At least one"
        )
    cells = tuple(_checked(document, axes, kept, catalogue))
    return Matrix(document, axes, cells, baseline, chosen)


def _means(selector: Any, value: Any) -> bool:
    name = value.get("name") if isinstance(value, dict) else None
    return value is not None and selector in (value, name)


def _labels(axes: Iterable[Axis], entries: Iterable[Entry]) -> dict[str, str]:
    return {axis.name: entry.label for axis, entry in zip(axes, entries, strict=True)}


def _axis(document: Document, name: str, value: Any, faults: list[str]) -> Axis:
    where = document.where(("matrix", name))
    entries: list[Entry] = []
    if isinstance(value, list) and value:
        entries = _listed_entries(name, value)
    elif isinstance(value, dict) and value and all(map(_is_mapping, value.values())):
        entries = [_named_entry(name, label, changes) for label, changes in value.items()]
    else:
        faults.append(
            f"{where}: found {json.dumps(value)}. A list of values for {name}, "
            "or named mappings of key paths such as {short: {outer.steps: 100}}"
        )
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    faults += [f"{where}: {label} is there twice. Every value once" for label in twice]
    return Axis(name, tuple(entries))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _listed_entries(name: str, values: list[Any]) -> list[Entry]:
    """The entries of an axis that is a list of values for one key path."""
    changes = [change_of(name, value, ("matrix", name, i)) for i, value in enumerate(values)]
    labels = _unique_labels([value for _, value, _ in changes])
    return [
        Entry(label, change[1], (change,)) for label, change in zip(labels, changes, strict=True)
    ]


def _named_entry(name: str, label: str, changes: Mapping[str, Any]) -> Entry:
    """An entry with a name, which sets any number of key paths."""
    written: KeyPath = ("matrix", name, label)
    return Entry(
        label, None, tuple(change_of(key, value, (*written, key)) for key, value in changes.items())
    )


def change_of(key: str, value: Any, written: KeyPath) -> Change:
    """What sets a key path, dotted, to a value that is written somewhere else in the document."""
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
        where = document.where(("matrix", axis.name))
        for path in {path for entry in axis.entries for path, *_ in entry.changes}:
            if path in owner:
                key = dotted(path)
                yield f"{where}: {key} is set by {owner[path]} too. One axis for each key"
            owner[path] = axis.name


def _selections(
    document: Document, axes: tuple[Axis, ...], written: Any, faults: list[str]
) -> list[dict[str, Any]]:
    if written is None:
        return []
    if not isinstance(written, list):
        where = document.where(("matrix", "exclude"))
        faults.append(
            f"{where}: found {json.dumps(written)}. A list of mappings such as {{adapter: maml}}"
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
        found = f"{document.where(path)}: found {json.dumps(selection)}"
        yield f"{found}. A mapping from axes to values, such as {{adapter: maml}}"
        return
    axis_named = {axis.name: axis for axis in axes}
    for name, wanted in selection.items():
        where = document.where((*path, name))
        if name not in axis_named:
            yield f"{where}: not an axis of this matrix. {suggest(name, axis_named, label='Axes')}"
            continue
        entries = axis_named[name].entries
        for selector in wanted if isinstance(wanted, list) else [wanted]:
            if entries and not axis_named[name].selected(selector):
                labels = ", ".join(entry.label for entry in entries)
                yield f"{where}: {name} has no value {_label(selector, True)}. One of {labels}"


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
        combined = changed(document, (change for entry in entries for change in entry.changes))
        try:
            cells.append(Cell(labels, check_document(combined, catalogue)))
        except RecipeError as error:
            found.add(error.faults, _title_of(labels))
    found.raise_any()
    by_digest: dict[str, Cell] = {}
    for cell in cells:
        if (other := by_digest.setdefault(cell.digest, cell)) is not cell:
            where = document.where(("matrix",))
            raise RecipeError(
                f"{where}: {other.title} and {cell.title} are the same run. Leave one out"
            )
    return cells


def changed(document: Document, changes: Iterable[Change]) -> Document:
    """A copy of the document with these changes; its messages name where they are written."""
    copied = Document(document.source, copy.deepcopy(document.data), dict(document.places))
    for path, value, written in sorted(changes, key=lambda change: len(change[0])):
        set_key(copied, path, copy.deepcopy(value), document.place(written))  # sections first
        depth = len(written)
        copied.places |= {
            (*path, *place[depth:]): where
            for place, where in document.places.items()
            if place[:depth] == written
        }
    return copied


class FaultsOfCells:
    """Faults of many combinations, each once, with the combinations that have it."""

    def __init__(self, cells: int):
        self._cells = cells
        self._titles: dict[str, list[str]] = {}

    def add(self, faults: Iterable[str], title: str) -> None:
        """Note the faults of the combination with this title."""
        for fault in faults:
            self._titles.setdefault(fault, []).append(title)

    def raise_any(self) -> None:
        """Raise RecipeError with all of them, if there are any."""
        if self._titles:
            raise RecipeError(in_file_order([self._told(*item) for item in self._titles.items()]))

    def _told(self, fault: str, titles: list[str]) -> str:
        if len(titles) == self._cells:
            return fault
        more = f"; and {len(titles) - 1} more" if len(titles) > 1 else ""
        return f"{fault} [{titles[0]}{more}]"

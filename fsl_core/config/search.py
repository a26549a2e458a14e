"""The `search:` section of a recipe: ranges and choices at key paths, for one method or several.

All methods get the same number of trials, and all trials the same steps and validation episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fsl_core.config.document import Document, KeyPath, Overrides, dotted, read_document
from fsl_core.config.faults import in_file_order, validation_faults
from fsl_core.config.launching import LAUNCHER, Choice, choose, choose_launcher, take_launcher
from fsl_core.config.matrix import Cell, Change, FaultsOfCells, change_of, changed
from fsl_core.config.recipe import MANY, check_document
from fsl_core.config.sections import SECTIONS, Catalogue, SearchSection, search_model
from fsl_core.errors import RecipeError
from fsl_core.searcher import Choices, Range

SEARCH = "search"
SPACE = "space"
SEARCHER = (SEARCH, "searcher")
METHOD = "method"
COMPARED = (
    *("seed", "episodes", "evaluate", "start_from", "expect"),
    *("outer.steps", "outer.validate_every", "outer.validate_episodes"),
)
"""What every trial has in common, so that their scores may be compared."""
BUDGET = "outer.meta_batch_size"
"""Common to all methods as well; it may be searched, by all of them."""
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Method:
    """One of the methods that a search compares.

    document: the recipe with what the method sets.
    space:    what is searched, by key path.
    written:  where each of these is written.
    """

    name: str
    document: Document
    space: Mapping[str, Range | Choices]
    written: Mapping[str, KeyPath]

    def changes(self, parameters: Mapping[str, Any]) -> list[Change]:
        return [change_of(key, value, self.written[key]) for key, value in parameters.items()]

    def cell(self, parameters: Mapping[str, Any], what: str, catalogue: Catalogue) -> Cell:
        """The recipe of one trial. what: it is, such as `trial 3`."""
        document = changed(self.document, self.changes(parameters))
        return Cell({METHOD: self.name, "trial": what}, check_document(document, catalogue))

    def ends(self) -> Iterator[dict[str, Any]]:
        """The first value of every key, then each end and each choice beside first values."""
        values = {key: _ends(among) for key, among in self.space.items()}
        first = {key: found[0] for key, found in values.items()}
        yield first
        yield from ({**first, key: value} for key, found in values.items() for value in found[1:])


@dataclass(frozen=True)
class Search:
    """A recipe of a search, checked.

    ends: cells at the ends of every range and at every choice, with those of the first values
        at the beginning of each method.
    options: trials, batch and seed, as in the recipe.
    """

    document: Document
    methods: tuple[Method, ...]
    options: SearchSection
    searcher: Choice
    launcher: Choice
    ends: tuple[Cell, ...]


def has_search(recipe: Path, overrides: Overrides = ()) -> bool:
    """Whether a recipe file describes a search."""
    return read_document(recipe, overrides, SECTIONS).data.get(SEARCH) is not None


def read_search(
    recipe: Path | Mapping[str, Any],
    catalogue: Catalogue,
    overrides: Overrides = (),
    launcher: str | None = None,
    jobs: int | None = None,
) -> Search:
    """Read a recipe with a `search:` and check the ends of every range and every choice.

    launcher, jobs: what is said of the section `launcher`, beside recipe and overrides.
    RecipeError lists every fault once, where it is written.
    """
    document = read_document(recipe, overrides, {*SECTIONS, (LAUNCHER,), SEARCHER})
    section = document.data.pop(SEARCH, None)
    _refuse_other(document, section)
    choose_launcher(document, launcher, jobs)
    starter = take_launcher(document, catalogue)
    searcher = choose(document, SEARCHER, section.pop("searcher", None), "random", catalogue)
    options = _checked(document, section)
    methods = _methods(document, options, catalogue)
    ends, found = [], FaultsOfCells(sum(len([*method.ends()]) for method in methods))
    for method in methods:
        for parameters in method.ends():
            what = _told(parameters)
            try:
                ends.append(method.cell(parameters, what, catalogue))
            except RecipeError as error:
                found.add(error.faults, f"{method.name}: {what}")
    found.raise_any()
    return Search(document, methods, options, searcher, starter, tuple(ends))


def _refuse_other(document: Document, section: Any) -> None:
    where = document.where((SEARCH,))
    if section is None:
        raise RecipeError(
            f"{document.source}: no `search:`, so there is nothing to search. "
            "search: {trials: 20, space: {adapter.inner_lr: {low: 0.01, high: 1, log: true}}}"
        )
    if not isinstance(section, dict):
        raise RecipeError(f"{where}: found {json.dumps(section)}. A mapping with a `space`")
    if document.data.get("matrix") is not None:
        what, command = MANY["matrix"]
        raise RecipeError(
            f"{document.where(('matrix',))}: {what} beside a search. One of the two, as by "
            f"`fsl {command} -s search=null`; `search.methods` compares methods"
        )
    if document.data.get("expect"):
        raise RecipeError(
            f"{document.where(('expect',))}: figures of one run, and a search has many. "
            "One of the two"
        )


def _checked(document: Document, section: dict[str, Any]) -> SearchSection:
    section = {key: value for key, value in section.items() if value is not None}
    model, whole = search_model(), {SEARCH: section}
    try:
        found: Any = model.model_validate_json(json.dumps(whole), strict=True)
    except ValidationError as error:
        written = Document(document.source, whole, document.places)
        raise RecipeError(in_file_order(validation_faults(written, error, model))) from error
    return found.search


def _methods(
    document: Document, options: SearchSection, catalogue: Catalogue
) -> tuple[Method, ...]:
    faults: list[str] = []
    shared = _space(document, options.space, (SEARCH, SPACE), faults)
    faults += _refused(document, shared, COMPARED)
    found = []
    for name, given in (options.methods or {"": {}}).items():
        at: KeyPath = (SEARCH, "methods", name)
        own_space = given.get(SPACE) or {}
        if not isinstance(own_space, dict):
            where = document.where((*at, SPACE))
            faults.append(f"{where}: found {json.dumps(own_space)}. A mapping of key paths")
            own_space = {}
        own = _space(document, own_space, (*at, SPACE), faults)
        values = {key: (value, (*at, key)) for key, value in given.items() if key != SPACE}
        settings = {key: written for key, (_, written) in values.items()}
        fixed = {key: (None, written) for key, written in settings.items()}
        faults += _refused(document, {**fixed, **own}, (*COMPARED, BUDGET))
        faults += _twice(document, {key: w for key, (_, w) in shared.items()}, own, settings)
        changes = [change_of(key, value, written) for key, (value, written) in values.items()]
        found.append((name, changes, {**shared, **own}, at))
    if not faults:
        faults += [
            f"{document.where(at)}: nothing to search. A `space` of key paths with ranges or lists"
            for _, _, space, at in found
            if not space
        ]
    if faults:
        raise RecipeError(in_file_order(list(dict.fromkeys(faults))))
    return tuple(
        _method(document, name, changes, space, catalogue) for name, changes, space, _ in found
    )


_Space = dict[str, tuple[Range | Choices, KeyPath]]


def _method(
    document: Document, name: str, changes: list[Change], space: _Space, catalogue: Catalogue
) -> Method:
    made = changed(document, changes)
    among = {key: found for key, (found, _) in space.items()}
    written = {key: path for key, (_, path) in space.items()}
    method = Method(name or _name_of(made), made, among, written)
    whole = {key for key in among if _takes_whole_alone(method, key, catalogue)}
    told = {
        key: Range(f.low, f.high, f.log, f.step, whole=True)
        if key in whole and isinstance(f, Range)
        else f
        for key, f in among.items()
    }
    return Method(method.name, made, told, written)


def _name_of(document: Document) -> str:
    adapter = document.data.get("adapter")
    name = adapter.get("name") if isinstance(adapter, dict) else adapter
    return name if isinstance(name, str) else "the method"


def _takes_whole_alone(method: Method, key: str, catalogue: Catalogue) -> bool:
    """Whether the option is a whole number: its schema refuses a fraction within the range."""
    among = method.space[key]
    if not isinstance(among, Range) or not all(
        isinstance(end, int) for end in (among.low, among.high)
    ):
        return False
    try:
        method.cell({**next(method.ends()), key: among.low + 0.5}, "", catalogue)
    except RecipeError:
        return True
    return False


def _space(document: Document, given: Mapping[str, Any], at: KeyPath, faults: list[str]) -> _Space:
    found: _Space = {}
    for key, value in given.items():
        where = document.where((*at, key))
        try:
            if not all(key.split(".")):
                raise ValueError("not a key path. Such as adapter.inner_lr")
            found[key] = _among(value), (*at, key)
        except ValueError as error:
            faults.append(f"{where}: {error}")
    return found


def _among(value: Any) -> Range | Choices:
    """What a range or a list of values means. ValueError says what would fit."""
    if isinstance(value, list) and len(value) > 1:
        told = [json.dumps(item) for item in value]
        if twice := next((item for item in told if told.count(item) > 1), ""):
            raise ValueError(f"{twice} is there twice. Every value once")
        return Choices(tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {*RANGE_KEYS}:
        raise ValueError(
            f"found {json.dumps(value)}. A list of two values or more, or a range such as "
            "{low: 0.01, high: 1, log: true}"
        )
    low, high, step = value["low"], value["high"], value.get("step")
    log = value.get("log", False)
    for name, number in (("low", low), ("high", high), ("step", step)):
        if isinstance(number, bool) or not isinstance(number, int | float | None):
            raise ValueError(f"{name}: found {json.dumps(number)}. A number")
    if not isinstance(log, bool):
        raise ValueError(f"log: found {json.dumps(log)}. true or false")
    if low is None or high is None or not low < high:
        raise ValueError(f"from {json.dumps(low)} to {json.dumps(high)}. low below high")
    if log and low <= 0:
        raise ValueError(f"low: {low}, on a log scale. A number above 0")
    if step is not None and (log or not 0 < step <= high - low):
        raise ValueError(
            f"step: {json.dumps(step)}{' with log' if log else ''}. A number above 0 and up to "
            "high - low, without log"
        )
    return Range(low, high, log, step)


def _ends(among: Range | Choices) -> list[Any]:
    if isinstance(among, Choices):
        return [*among.values]
    return [among.low, among.high] if among.step is None else [among.low, among.fitted(among.high)]


def _told(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in parameters.items())


def _refused(
    document: Document, keys: Mapping[str, tuple[Any, KeyPath]], fixed: tuple[str, ...]
) -> Iterator[str]:
    """Faults of keys that all trials, or all methods, have to have in common."""
    for (key, (_, written)), common in product(keys.items(), fixed):
        if _overlap(key, common):
            yield (
                f"{document.where(written)}: {common} is the same for all that is compared. "
                "Below it nothing is searched or changed: write it beside `search`"
            )


def _twice(
    document: Document,
    shared: Mapping[str, KeyPath],
    own: Mapping[str, tuple[Any, KeyPath]],
    settings: Mapping[str, KeyPath],
) -> Iterator[str]:
    """Faults of keys that are set or searched at two places, one of which would be lost."""
    searched = {**shared, **{key: written for key, (_, written) in own.items()}}
    for key, other in product(own, shared):
        if _overlap(key, other):
            yield f"{document.where(own[key][1])}: {other} is searched for all methods. One place"
    for key, other in product(searched, settings):
        if key == other or other.startswith(f"{key}."):
            yield f"{document.where(settings[other])}: {key} is searched. One of the two"


def _overlap(key: str, other: str) -> bool:
    """Whether one of two key paths holds the other, or is it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def labels_of(parameters: Mapping[str, Any]) -> str:
    """Parameters in one line: `inner_lr=0.1, optimizer.lr=0.003`, as short as they are unique."""
    names = _short_names(list(parameters))
    return ", ".join(f"{names[key]}={_shown(value)}" for key, value in parameters.items())


def _short_names(keys: list[str]) -> dict[str, str]:
    found = {}
    for key in keys:
        parts = key.split(".")
        tails = [dotted(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        found[key] = next(
            tail for tail in tails if not any(f".{other}".endswith(f".{tail}") for other in others)
        )
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

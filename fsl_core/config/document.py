"""A recipe file as plain data, with the place of every key, and `-s` overrides laid over it."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarbool import ScalarBoolean

from fsl_core.config.yaml_text import (
    AS_WRITTEN,
    LARGEST,
    PlainConstructor,
    WordConstructor,
    refuse_long,
    refuse_what_is_lost,
    yaml_errors,
    yaml_reader,
)
from fsl_core.errors import RecipeError

KeyPath = tuple[str | int, ...]


def dotted(path: Iterable[str | int]) -> str:
    """A key path as people write it: `outer.optimizer.lr`."""
    return ".".join(map(str, path))


@dataclass
class Document:
    """The data of a recipe, before it is checked.

    places: where each key path was written: `file:line`, or `-s key.path` for an override.
    """

    source: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: Sequence[str | int]) -> str:
        """Where a key path, or its nearest written parent, was written."""
        path = tuple(path)
        return next(
            (self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places),
            self.source,
        )

    def where(self, path: Sequence[str | int]) -> str:
        """`<file>:<line>: <key>`, or `-s <key>`, of a key path or of its nearest written parent."""
        place = self.place(path)
        key = dotted(path)
        already = (f"-s {key}", f"overrides: {key}")
        return place if not key or place in already else f"{place}: {key}"

    def where_built(self, path: KeyPath) -> str:
        """The same for a section, with the overrides of its keys: any of them may be to blame."""
        below = (place for p, place in self.places.items() if p[: len(path)] == path != p)
        overrides = [place for place in dict.fromkeys(below) if place.startswith("-s ")]
        own = self.where(path)
        told = [place for place in overrides if not own.startswith(place)]
        return f"{own} (with {', '.join(told)})" if told else own


Overrides = Iterable[str] | Mapping[str, Any]
"""Changes to a recipe: texts such as `adapter.inner_lr=0.1`, or values by key path."""


def read_document(
    recipe: Path | Mapping[str, Any],
    overrides: Overrides = (),
    named: Container[KeyPath] = (),
) -> Document:
    """Read a recipe and change it as the overrides say.

    recipe: a file (YAML 1.2, so `1e-3` is a number), or the data itself.
    named: sections that an override may give as a word alone: `uniform` for {name: uniform}.
    Raises RecipeError with every fault of the overrides.
    """
    document = _of_data(recipe) if isinstance(recipe, Mapping) else _of_file(recipe)
    if isinstance(overrides, str):  # one text, not its letters
        overrides = [overrides]
    if not isinstance(overrides, Iterable):
        found = f"overrides: found {overrides!r}"
        raise RecipeError(f"{found}. Values by key path, or texts such as outer.steps=100")
    faults: list[str] = []
    by_path = overrides.items() if isinstance(overrides, Mapping) else None
    for override in overrides if by_path is None else by_path:
        try:
            if isinstance(override, str):
                _override(document, override, named)
            else:
                key, value = override
                _set(document, key, value, named)
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(faults)
    return document


def _of_file(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        refuse_long(content, str(path))
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: {reason}. A recipe file in YAML") from error
    return parse_document(text, str(path))


def _of_data(recipe: Mapping[str, Any]) -> Document:
    document = Document("recipe", {}, {(): "recipe"})
    document.data = _as_plain(recipe, document, ())
    return document


def _as_plain(value: Any, document: Document, path: KeyPath) -> Any:
    """The value as a file could hold it: mappings, lists, texts, numbers, true, false, nothing."""
    if isinstance(value, Mapping):
        strange = next((key for key in value if not isinstance(key, str)), None)
        if strange is not None:
            raise RecipeError(f"{document.where(path)}: key {strange!r}. Keys are texts")
        return {key: _as_plain(item, document, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(item, document, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    where = dotted(path) or document.source
    raise RecipeError(
        f"{document.source}: {where}: a {type(value).__name__}. "
        "A number, a text, a list or a mapping"
    )


def parse_document(text: str, source: str) -> Document:
    """The document that a YAML text holds.

    source: its file, for messages.
    """
    refuse_long(text.encode(errors="replace"), source)
    with yaml_errors(source):
        data = yaml_reader(PlainConstructor).load(text)
    if not isinstance(data, CommentedMap):
        raise RecipeError(
            f"{source}:1: {_name(data)}. A mapping of sections such as episodes, backbone, "
            "adapter, outer"
        )
    document = Document(source, {}, {(): f"{source}:1"})
    document.data = _plain(data, document, ())
    return document


def read_value(text: str, source: str) -> Any:
    """What a value on a command line means.

    A list, a mapping and a text in quotes are YAML. Every other text is a decimal number, `true`,
    `false` or `null`, or it stands for itself, to the last character: `set #2`, `my: data`,
    `*.png`, `1_000`.

    source: the words before it, for messages.
    Raises RecipeError if YAML would leave out a part of it.

    >>> read_value("set #2", "-s episodes.root"), read_value("{lr: 1e-3}", "-s outer.optimizer")
    ('set #2', {'lr': 0.001})
    """
    if not text.strip():
        raise RecipeError(f"{source}: no value. null for none, '\"\"' for an empty text")
    refuse_long(text.encode(errors="replace"), source)
    if text.lstrip()[0] not in "[{\"'":
        if not AS_WRITTEN.fullmatch(text.strip()):
            return text
        return _plain(yaml_reader(PlainConstructor).load(text.strip()), Document(source, {}), ())
    with yaml_errors(source, f"Well-formed YAML, or for a text {json.dumps(text)}", lines=False):
        refuse_what_is_lost(text, source)
        value = yaml_reader(WordConstructor).load(text)
    return _plain(value, Document(source, {}), ())


def _plain(node: Any, document: Document, path: KeyPath) -> Any:
    if isinstance(node, CommentedMap):
        _note_lines(node, document, path, str)
        return {str(key): _plain(value, document, (*path, str(key))) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        _note_lines(node, document, path, int)
        return [_plain(value, document, (*path, i)) for i, value in enumerate(node)]
    if isinstance(node, ScalarBoolean):  # one with an anchor: an int to Python
        return bool(node)
    for plain_type in (bool, int, float, str):
        if isinstance(node, plain_type):
            return plain_type(node)
    if node is None:
        return None
    raise RecipeError(f"{document.where(path)}: a value with a YAML tag. A plain value")


def _note_lines(
    node: CommentedMap | CommentedSeq,
    document: Document,
    path: KeyPath,
    part: type[str] | type[int],
) -> None:
    lines = node.lc.data or {}  # keys merged by `<<` have no line of their own
    for key, (line, *_) in lines.items():
        document.places[(*path, part(key))] = f"{document.source}:{line + 1}"


def _override(document: Document, override: str, named: Container[KeyPath]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(
            f"-s {override}: not an override. key.path=value, such as adapter.inner_lr=0.1"
        )
    path = tuple(key.split("."))
    value = _words_named(path, read_value(text, f"-s {key}"), named)
    set_key(document, path, value, f"-s {key}", said=f"-s {override}")


def _set(document: Document, key: str, value: Any, named: Container[KeyPath]) -> None:
    """Change what a key path holds, as a program asks for it."""
    if not isinstance(key, str) or not all(key.split(".")):
        raise RecipeError(f"overrides: {key!r}: not a key path. Such as adapter.inner_lr")
    path, place = tuple(key.split(".")), f"overrides: {key}"
    plain = _as_plain(value, Document(place, {}, {(): place}), ())
    set_key(document, path, _words_named(path, plain, named), place, said=place)


def _words_named(path: KeyPath, value: Any, named: Container[KeyPath]) -> Any:
    if path in named:
        return by_name(value)
    if isinstance(value, dict):
        return {key: _words_named((*path, key), item, named) for key, item in value.items()}
    return value


def by_name(value: Any) -> Any:
    """The section that a value means if it names a component: `uniform` is {name: uniform}."""
    return {"name": value} if isinstance(value, str) else value


def set_key(
    document: Document, path: tuple[str, ...], value: Any, place: str, said: str = ""
) -> None:
    """Replace what a key path holds.

    place: where the value is written, for messages.
    said:  the words that asked for it.
    """
    node: Any = document.data
    at: KeyPath = ()
    made: dict[KeyPath, str] = {}
    for depth, part in enumerate(path, start=1):
        key = _key(node, part)
        if key is None:
            asked, passed = said or f"{place}: {dotted(path)}", dotted(at)
            fitting = "A key path through mappings"
            if isinstance(node, list):
                fitting = f"A place in it, 0 .. {len(node) - 1}" if node else "One with entries"
            raise RecipeError(f"{asked}: {passed} is {_name(node)}. {fitting}")
        at = (*at, key)
        if depth < len(path):
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
                made[at] = place
            node = node[key]
    node[at[-1]] = value
    document.places = {p: where for p, where in document.places.items() if p[: len(at)] != at}
    document.places |= {**made, at: place}


def _key(node: Any, part: str) -> str | int | None:
    """What a part of a key path means in a mapping, or a list; None if it means nothing there."""
    if isinstance(node, dict):
        return part
    place = int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1
    return place if isinstance(node, list) and 0 <= place < len(node) else None


def _name(value: Any) -> str:
    """What a value is, in words.

    >>> _name(None), _name([1]), _name(2.5)
    ('empty', 'a list', 'a number')
    """
    words = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    words |= {str: "a text", dict: "a mapping"}
    if value is None:
        return "empty"
    return next((word for kind, word in words.items() if isinstance(value, kind)), "a value")

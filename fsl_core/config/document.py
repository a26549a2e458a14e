"""A recipe file as plain data, with the place of every key, and `-s` overrides laid over it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.tokens import AliasToken, AnchorToken, TagToken

from fsl_core.errors import RecipeError

KeyPath = tuple[str | int, ...]

_AS_WRITTEN = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"  # a decimal number
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    r"|true|True|TRUE|false|False|FALSE|null"
)
"""Words of a command line that are no text. `007`, `1_000`, `0o17` or `~` may name a folder."""
LARGEST, DEEPEST, MOST_VALUES = 2**17, 50, 10_000
"""Bytes of a YAML text, lists and mappings within one another, and values with aliases written out.
A recipe has some thousand bytes; nine lines of aliases to aliases can stand for billions of values.
With these bounds the worst text found takes two seconds.
"""


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
        key = ".".join(str(part) for part in path)
        return place if not key or place == f"-s {key}" else f"{place}: {key}"

    def where_built(self, path: KeyPath) -> str:
        """The same for a section, with the overrides of its keys: any of them may be to blame."""
        below = (place for p, place in self.places.items() if p[: len(path)] == path != p)
        overrides = [place for place in dict.fromkeys(below) if place.startswith("-s ")]
        own = self.where(path)
        told = [place for place in overrides if not own.startswith(place)]
        return f"{own} (with {', '.join(told)})" if told else own


def read_document(
    path: Path, overrides: Iterable[str] = (), named: Container[KeyPath] = ()
) -> Document:
    """Read a recipe file (YAML 1.2, so `1e-3` is a number) and apply `key.path=value` overrides.

    named: sections that an override may give as a word alone: `uniform` for {name: uniform}.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        _refuse_long(content, str(path))
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: {reason}. A recipe file in YAML") from error
    document = parse_document(text, str(path))
    faults: list[str] = []
    for override in overrides:
        try:
            _override(document, override, named)
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(faults)
    return document


def parse_document(text: str, source: str) -> Document:
    """The document that a YAML text is. source: its file, for messages."""
    _refuse_long(text.encode(errors="replace"), source)
    with _yaml_errors(source):
        data = _yaml(_Constructor).load(text)
    if not isinstance(data, CommentedMap):
        raise RecipeError(
            f"{source}:1: {_name(data)}. A mapping of sections such as episodes, backbone, "
            "adapter, outer"
        )
    document = Document(source, {}, {(): f"{source}:1"})
    document.data = _plain(data, document, ())
    return document


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as a YAML text, in the order of its keys, that reads back as the same data."""
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.Representer = _Representer
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100
    yaml.dump(data, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Quotes texts that begin with a sign: of `? a` in a list ruamel reads something else."""

    def represent_text(self, text: str) -> ScalarNode:
        style = None if text[:1].isalnum() else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_text)


def read_value(text: str, source: str) -> Any:
    """What a value on a command line means; source: the words before it, for messages.

    A list, a mapping and a text in quotes are YAML. Every other text is a decimal number, `true`,
    `false` or `null`, or else stands for itself, to the last character: `set #2`, `my: data`,
    `*.png`, `1_000`. RecipeError where YAML would leave out a part of it.

    >>> read_value("set #2", "-s episodes.root"), read_value("{lr: 1e-3}", "-s outer.optimizer")
    ('set #2', {'lr': 0.001})
    """
    if not text.strip():
        raise RecipeError(f"{source}: no value. null for none, '\"\"' for an empty text")
    _refuse_long(text.encode(errors="replace"), source)
    if text.lstrip()[0] not in "[{\"'":
        if not _AS_WRITTEN.fullmatch(text.strip()):
            return text
        return _plain(_yaml(_Constructor).load(text.strip()), Document(source, {}), ())
    with _yaml_errors(source, f"Well-formed YAML, or for a text {json.dumps(text)}", lines=False):
        _refuse_what_is_lost(text, source)
        value = _yaml(_WordConstructor).load(text)
    return _plain(value, Document(source, {}), ())


def _refuse_what_is_lost(text: str, source: str) -> None:
    """A comment lies between two tokens of YAML; anchors and tags are tokens without a value."""
    end = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        skipped = text[end : token.start_mark.index].strip()
        if isinstance(token, AnchorToken | AliasToken | TagToken):
            skipped = text[token.start_mark.index : token.end_mark.index]
        if skipped:
            raise RecipeError(
                f"{source}: {skipped!r} would be left out: to YAML it is a comment, anchor or tag. "
                "Quotes around the text that it belongs to"
            )
        end = max(end, token.end_mark.index)


class _Constructor(RoundTripConstructor):
    """Dates stay as they are written: no option is a date, and a folder may have one as its name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


class _WordConstructor(_Constructor):
    """Within the braces of a command line too, a word that YAML would rewrite is a text."""

    def construct_word(self, node: ScalarNode) -> Any:
        if node.value and not _AS_WRITTEN.fullmatch(node.value):
            return node.value
        return RoundTripConstructor.yaml_constructors[node.tag](self, node)


for _kind in ("int", "float", "null"):
    _WordConstructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _WordConstructor.construct_word)


def _yaml(constructor: type[RoundTripConstructor]) -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor, yaml.Composer = constructor, _BoundedComposer
    return yaml


@contextmanager
def _yaml_errors(
    source: str, fitting: str = "Well-formed YAML", lines: bool = True
) -> Iterator[None]:
    """Within this context, what is wrong with a YAML text is a RecipeError."""
    try:
        yield
    except RecipeError:
        raise
    except _BeyondBoundsError as error:
        line = f":{error.problem_mark.line + 1}" if lines else ""
        raise RecipeError(f"{source}{line}: {error.problem}. A recipe with less of it") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and lines else ""
        problem = " ".join(str(error.problem or error.context or "not YAML").split())[:200]
        raise RecipeError(f"{source}{line}: YAML syntax: {problem}. {fitting}") from error
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{source}: YAML syntax: {reason}. {fitting}") from error
    except Exception as error:  # ruamel's constructors raise nearly anything on a foreign tag
        raise RecipeError(f"{source}: YAML: {' '.join(str(error).split())}. {fitting}") from error


def _refuse_long(content: bytes, source: str) -> None:
    if len(content) > LARGEST:
        raise RecipeError(f"{source}: more than {LARGEST} bytes. A recipe of some hundred lines")


class _BeyondBoundsError(MarkedYAMLError):
    pass


class _BoundedComposer(Composer):
    """Refuses what is small as a text and has no end as data, before any data is made of it."""

    def __init__(self, loader: Any = None):
        super().__init__(loader)
        self.warn_double_anchors = False  # legal, and a warning is for the author of a program
        self._level = 0
        self._sizes: dict[int, int] = {}  # values below a node, aliases written out, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        place = self.parser.peek_event().start_mark
        self._level += 1
        if self._level > DEEPEST:
            raise _BeyondBoundsError(
                problem=f"more than {DEEPEST} lists and mappings within one another",
                problem_mark=place,
            )
        node = super().compose_node(parent, index)
        self._level -= 1
        if id(node) not in self._sizes and isinstance(node, CollectionNode):
            if node.end_mark is None:  # it is still being read: an alias to what it is part of
                raise _BeyondBoundsError(
                    problem="an alias to a value that the alias is part of", problem_mark=place
                )
            self._sizes[id(node)] = 1 + sum(map(self._size, _children(node)))
        if self._size(node) > MOST_VALUES:
            raise _BeyondBoundsError(
                problem=f"more than {MOST_VALUES} values, aliases written out", problem_mark=place
            )
        return node

    def _size(self, node: Any) -> int:
        return self._sizes.get(id(node), 1)


def _children(node: CollectionNode) -> Iterable[Any]:
    return (part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,)))


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
    for key, (line, *_) in (
        node.lc.data or {}
    ).items():  # keys merged by `<<` have no line of their own
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


def _words_named(path: KeyPath, value: Any, named: Container[KeyPath]) -> Any:
    if path in named:
        return by_name(value)
    if isinstance(value, dict):
        return {key: _words_named((*path, key), item, named) for key, item in value.items()}
    return value


def by_name(value: Any) -> Any:
    """The section that a value means where a component is named: `uniform` is {name: uniform}."""
    return {"name": value} if isinstance(value, str) else value


def set_key(document: Document, path: KeyPath, value: Any, place: str, said: str = "") -> None:
    """Replace what a key path holds.

    place: where the value is written, for messages.    said: the words that asked for it.
    """
    node, made = document.data, {path: place}
    for depth, part in enumerate(path[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
            made[path[:depth]] = place
        node = node[part]
        if not isinstance(node, dict):
            asked = said or f"{place}: {'.'.join(map(str, path))}"
            passed = ".".join(map(str, path[:depth]))
            raise RecipeError(f"{asked}: {passed} is {_name(node)}. A key path through mappings")
    node[path[-1]] = value
    document.places = {p: where for p, where in document.places.items() if p[: len(path)] != path}
    document.places |= made


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

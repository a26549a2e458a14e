"""A recipe file as plain data, with the place of every key, and `-s` overrides laid over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode

from fsl_core.errors import RecipeError

KeyPath = tuple[str | int, ...]

LARGEST, DEEPEST, MOST_VALUES = 2**17, 50, 10_000
"""Bytes of a YAML text, lists and mappings within one another, and values with aliases written out.
A recipe has some thousand bytes; nine lines of aliases to aliases can stand for billions of values.
With these bounds the worst text found takes two seconds.
"""


@dataclass
class Document:
    """The data of a recipe, before it is checked.

    places: where each key path was written: `file:line`, or `-s` for an override.
    """

    source: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: Sequence[str | int]) -> str:
        """`<file>:<line>: <key>` of a key path, or of its nearest written parent."""
        path = tuple(path)
        place = next(
            (self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places),
            self.source,
        )
        key = ".".join(str(part) for part in path)
        return f"{place}: {key}" if key else place


def read_document(path: Path, overrides: Iterable[str] = ()) -> Document:
    """Read a recipe file (YAML 1.2, so `1e-3` is a number) and apply `key.path=value` overrides, whose values are YAML too."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        _refuse_long(content, str(path))
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: {reason}. A recipe file in YAML") from error
    document = parse_document(text, str(path))
    for override in overrides:
        _override(document, override)
    return document


def parse_document(text: str, source: str) -> Document:
    """The document that a YAML text is. source: its file, for messages."""
    data = _parse(text, source)
    if not isinstance(data, CommentedMap):
        raise RecipeError(
            f"{source}:1: {_name(data)}. A mapping of sections such as episodes, backbone, adapter, outer"
        )
    document = Document(source, {}, {(): f"{source}:1"})
    document.data = _plain(data, document, ())
    return document


def read_value(text: str, source: str) -> Any:
    """The plain data that a YAML text on a command line means; source: the words before it. RecipeError where it is not YAML."""
    return _plain(_parse(text, source), Document(source, {}), ())


def _parse(text: str, source: str) -> Any:
    _refuse_long(text.encode(errors="replace"), source)
    try:
        yaml = YAML(typ="rt", pure=True)
        yaml.Composer = _BoundedComposer
        return yaml.load(text)
    except _BeyondBoundsError as error:
        line = error.problem_mark.line + 1
        raise RecipeError(f"{source}:{line}: {error.problem}. A recipe with less of it") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context or "not YAML").split())[:200]
        raise RecipeError(f"{source}{line}: YAML syntax: {problem}. Well-formed YAML") from error
    except YAMLError as error:
        raise RecipeError(
            f"{source}: YAML syntax: {' '.join(str(error).split())}. Well-formed YAML"
        ) from error
    except Exception as error:  # ruamel's constructors raise nearly anything on a date that is none or a foreign tag
        raise RecipeError(
            f"{source}: YAML: {' '.join(str(error).split())}. Well-formed YAML"
        ) from error


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
    for plain_type in (bool, int, float, str):
        if isinstance(node, plain_type):
            return plain_type(node)
    return None if node is None else str(node)


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


def _override(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(
            f"-s {override}: not an override. key.path=value, such as adapter.inner_lr=0.1"
        )
    path = tuple(key.split("."))
    set_key(document, path, read_value(text, f"-s {key}"), "-s", said=f"-s {override}")


def set_key(document: Document, path: KeyPath, value: Any, place: str, said: str = "") -> None:
    """Replace what a key path holds. place: where the value is written, for messages; said: the words that asked for it."""
    node = document.data
    for depth, part in enumerate(path[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            asked, passed = (
                said or f"{place}: {'.'.join(map(str, path))}",
                ".".join(map(str, path[:depth])),
            )
            raise RecipeError(f"{asked}: {passed} is {_name(node)}. A key path through mappings")
    node[path[-1]] = value
    document.places = {p: where for p, where in document.places.items() if p[: len(path)] != path}
    document.places[path] = place


def _name(value: Any) -> str:
    return (
        "empty" if value is None else f"a {type(value).__name__.lower().removeprefix('commented')}"
    )

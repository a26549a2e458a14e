"""YAML as recipes use it: bounded, without tags, with words of a command line kept as written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.tokens import AliasToken, AnchorToken, TagToken

from fsl_core.errors import RecipeError

AS_WRITTEN = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"  # a decimal number
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    r"|true|True|TRUE|false|False|FALSE|null"
)
"""Words of a command line that are not a text. `007`, `1_000`, `0o17` or `~` may name a folder."""


LARGEST, DEEPEST, MOST_VALUES = 2**17, 50, 10_000
"""Bytes of a YAML text, lists and mappings within one another, and values with aliases written out.
A recipe has some thousand bytes; nine lines of aliases to aliases can stand for billions of values.
With these bounds the worst text found takes two seconds.
"""


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as a YAML text, in the order of its keys, that reads back as the same data."""
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.Representer = _Representer
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel: only None
    yaml.width = 100
    yaml.dump(data, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Quotes texts that begin with a sign: of `? a` in a list ruamel reads something else."""

    def represent_text(self, text: str) -> ScalarNode:
        style = None if text[:1].isalnum() else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_text)


def refuse_what_is_lost(text: str, source: str) -> None:
    """Raise RecipeError if YAML would read less than the whole text.

    A comment lies between two tokens of YAML; anchors and tags are tokens without a value.
    """
    end = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        skipped = text[end : token.start_mark.index].strip()
        if isinstance(token, AnchorToken | AliasToken | TagToken):
            skipped = text[token.start_mark.index : token.end_mark.index]
        if skipped:
            raise RecipeError(
                f"{source}: {skipped!r} would be left out: YAML reads a comment, anchor or tag. "
                "Quotes around the text that it belongs to"
            )
        end = max(end, token.end_mark.index)


class PlainConstructor(RoundTripConstructor):
    """Dates stay as they are written: no option is a date, but a folder's name may be one."""


PlainConstructor.add_constructor(
    "tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str
)


class WordConstructor(PlainConstructor):
    """Reads a word within the braces of a command line as a text if YAML would rewrite it."""

    def construct_word(self, node: ScalarNode) -> Any:
        """A number or null as YAML reads it, or the word as it is written."""
        if node.value and not AS_WRITTEN.fullmatch(node.value):
            return node.value
        return RoundTripConstructor.yaml_constructors[node.tag](self, node)


for _kind in ("int", "float", "null"):
    WordConstructor.add_constructor(f"tag:yaml.org,2002:{_kind}", WordConstructor.construct_word)


def yaml_reader(constructor: type[RoundTripConstructor]) -> YAML:
    """A reader of YAML 1.2 within our bounds, which keeps the line of every key."""
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor, yaml.Composer = constructor, _BoundedComposer
    return yaml


@contextmanager
def yaml_errors(
    source: str, fitting: str = "Well-formed YAML", lines: bool = True
) -> Iterator[None]:
    """Within this context, every fault of a YAML text becomes a RecipeError."""
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


def refuse_long(content: bytes, source: str) -> None:
    """Raise RecipeError for a text that is far longer than any recipe."""
    if len(content) > LARGEST:
        raise RecipeError(f"{source}: more than {LARGEST} bytes. A recipe of some hundred lines")


class _BeyondBoundsError(MarkedYAMLError):
    pass


class _BoundedComposer(Composer):
    """Refuses a text that is small but endless as data, before any data is made of it."""

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

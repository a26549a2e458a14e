"""A text of a few lines that stands for more than a machine can hold is refused, and quickly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from fsl_core.config.document import parse_document, read_value
from fsl_core.config.matrix import read_matrix
from fsl_core.config.yaml_text import LARGEST
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded

LETTERS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n" for before, this in pairwise(LETTERS)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{i}: &m{i}\n  <<: [*m{i - 1}, *m{i - 1}]\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "x.yaml:5: more than 10000 values, aliases written out. A recipe with less of it"),
        (MERGES, "more than 10000 values, aliases written out"),
        (f"a: [{'1, ' * 10_000}1]", "x.yaml:1: more than 10000 values"),
        ("a: " + "[" * 10_000, "x.yaml:1: more than 50 lists and mappings within one another"),
        ("{a: " * 60, "x.yaml:1: more than 50 lists and mappings"),
        ("- " * 5000, "x.yaml:1: more than 50 lists and mappings"),
        ("a: &a [1, *a]", "x.yaml:1: an alias to a value that the alias is part of"),
        ("a: 1\nb: &b\n  <<: *b", "x.yaml:3: an alias to a value that the alias is part of"),
        (f"a: {'x' * LARGEST}", f"x.yaml: more than {LARGEST} bytes. A recipe of some hundred"),
        ("é" * LARGEST, f"x.yaml: more than {LARGEST} bytes"),
        (f"a: *{'b' * 5000}", "x.yaml:1: YAML syntax: found undefined alias 'bbb"),
    ],
    ids=[
        "aliases",
        "merges",
        "items",
        "lists",
        "mappings",
        "dashes",
        "itself",
        "merged",
        "long",
        "letters",
        "name",
    ],
)
def test_what_has_no_end_is_refused(text: str, message: str):
    with pytest.raises(RecipeError) as raised:
        parse_document(text, "x.yaml")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_overrides_are_bounded_too():
    with pytest.raises(RecipeError, match=r"-s a: more than 50 lists and mappings"):
        read_value("[" * 60, "-s a")


def test_ordinary_anchors_and_merges_go_on_working():
    document = parse_document(
        "base: &base {x: 1, y: 2}\n"
        "merged: {<<: *base, y: 3}\n"
        "twice: {<<: [*base, {z: 4}]}\n"
        "list: [*base, *base]\n"
        "again: &base [5]\n"
        "last: *base\n",
        "x.yaml",
    )
    assert document.data == {
        "base": {"x": 1, "y": 2},
        "merged": {"x": 1, "y": 3},
        "twice": {"x": 1, "y": 2, "z": 4},
        "list": [{"x": 1, "y": 2}] * 2,
        "again": [5],
        "last": [5],
    }


def test_a_recipe_of_nine_thousand_values_is_read():
    assert len(parse_document(f"a: [{'1, ' * 8999}1]", "x.yaml").data["a"]) == 9000


def test_a_matrix_without_end_is_refused(toy_recipe: Path, toy_plugins: Loaded):
    axes = [f"outer.{key}: [{', '.join(map(str, range(1, 41)))}]" for key in ("steps", "rows", "x")]
    toy_recipe.write_text(f"{toy_recipe.read_text()}matrix: {{{', '.join(axes)}}}\n")
    with pytest.raises(RecipeError, match=r"toy.yaml:14: matrix: 64000 combinations, .* At most"):
        read_matrix(toy_recipe, toy_plugins.catalogue)

"""What a value on a command line means: all of it, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsl_core.config.document import read_document, read_value
from fsl_core.config.matrix import read_matrix
from fsl_core.config.recipe import read_recipe
from fsl_core.config.yaml_text import to_yaml
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded

TEXTS = [
    *("set #2", "# 2", "my: data", "a=b", "--- 5", "---", "- a", "? a", "| a", "> a"),
    *("&a", "*.png", "!new", "%TEMP%", "@home", "`pwd`", r"C:\new", "C:\\data\\"),
    *("yes", "no", "on", "off", "~", "~/data", "Null", "data ", " data", "a\n---\nb", "Ünï #"),
    *("1_000", "0o17", "0x1f", "0b1", "017", "12:30", "2024-01-01", "2024-1-1", "2024-99-99"),
]
"""Folders may have such names."""


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_whole(toy_recipe: Path, text: str):
    assert read_value(text, "-s x") == text
    document = read_document(toy_recipe, [f"episodes.root={text}"])
    assert document.data["episodes"]["root"] == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5", 5), (" 5 ", 5), ("-3", -3), ("+5", 5), ("1e-3", 0.001), (".5", 0.5), ("1.", 1.0)),
        *(("true", True), ("False", False), ("null", None), (".inf", float("inf"))),
        *(('"set #2"', "set #2"), ("'it''s'", "it's"), ('""', ""), ('"5"', "5")),
        ("[1, 2_000, ~, 2024-01-01, null]", [1, "2_000", "~", "2024-01-01", None]),
        (r"{root: C:\new, lr: 1e-3, on: yes}", {"root": r"C:\new", "lr": 0.001, "on": "yes"}),
        ('{root: "set #2", deep: [{a: b}]}', {"root": "set #2", "deep": [{"a": "b"}]}),
    ],
)
def test_numbers_words_and_yaml(text: str, value: object):
    found = read_value(text, "-s x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "-s x: no value. null for none, '\"\"' for an empty text"),
        ("  ", "-s x: no value. null for none, '\"\"' for an empty text"),
        (
            "{root: set #2}",
            "-s x: '#2}' would be left out: YAML reads a comment, anchor or tag. ",
        ),
        ("[1, 2] # three", "-s x: '# three' would be left out: "),
        ('"set" # 2', "-s x: '# 2' would be left out: "),
        ("{root: &a}", "-s x: '&a' would be left out: "),
        ("{root: *.png}", "-s x: '*.png' would be left out: "),
        ("{root: !new data}", "-s x: '!new' would be left out: "),
        ("[old] data", "-s x: YAML syntax: "),
        ("[1\n---\n2]", "-s x: YAML syntax: "),
        ("{a: 1, a: 2}", "-s x: YAML syntax: found duplicate key"),
        ("'tis", "-s x: YAML syntax: found unexpected end of stream. "),
    ],
)
def test_what_yaml_would_lose_is_refused(text: str, fault: str):
    with pytest.raises(RecipeError) as caught:
        read_value(text, "-s x")
    assert str(caught.value).startswith(fault)


def test_a_refused_text_is_shown_in_quotes_that_work():
    with pytest.raises(RecipeError) as caught:
        read_value("[old] data", "-s x")
    _, _, quoted = str(caught.value).partition(" or for a text ")
    assert read_value(quoted, "-s x") == "[old] data"


def test_a_file_keeps_dates_and_anchors_and_refuses_tags(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 2001-12-14t21:59:43.10-05:00\nb: 2024-99-99\nc: &c true\nd: *c\n")
    data = read_document(file).data
    assert data == {"a": "2001-12-14t21:59:43.10-05:00", "b": "2024-99-99", "c": True, "d": True}
    assert data["d"] is True
    for text in ("a: !new data", "a: !!binary aGk="):
        file.write_text(text)
        with pytest.raises(
            RecipeError, match="a.yaml:1: a: a value with a YAML tag. A plain value"
        ):
            read_document(file)


def test_a_word_names_a_component(toy_recipe: Path, toy_plugins: Loaded):
    words = ["adapter=explodes", "adapter.at_progress=0.25", "outer.weighting=uniform"]
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, [*words, "outer.schedule=cosine"])
    assert recipe.sections.adapter.at_progress == 0.25
    names = {path[-1]: component.name for path, component in recipe.chosen.items()}
    assert names["weighting"] == "uniform"
    assert names["schedule"] == "cosine"
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, ["outer={optimizer: sgd, steps: 3}"])
    assert recipe.chosen["outer", "optimizer"].name == "sgd"


def test_a_word_names_a_component_in_a_matrix(toy_recipe: Path, toy_plugins: Loaded):
    axis = "matrix.outer={a: {outer.optimizer: sgd}, b: {outer.optimizer: {name: adam}}}"
    cells = read_matrix(toy_recipe, toy_plugins.catalogue, [axis]).cells
    assert [cell.recipe.chosen["outer", "optimizer"].name for cell in cells] == ["sgd", "adam"]


def test_a_fault_of_a_matrix_on_the_command_line_is_blamed_on_it(
    toy_recipe: Path, toy_plugins: Loaded
):
    override = "matrix={adapter.temprature: [1, 2]}"
    with pytest.raises(RecipeError) as caught:
        read_matrix(toy_recipe, toy_plugins.catalogue, [override])
    (fault,) = caught.value.faults
    assert fault.startswith("-s matrix: adapter.temprature: ")


def test_an_empty_section_can_be_filled(toy_recipe: Path, toy_plugins: Loaded):
    toy_recipe.write_text(toy_recipe.read_text() + "expect:\n")
    override = "expect.accuracy={value: 0.5, tolerance: 0.1}"
    assert (
        read_recipe(toy_recipe, toy_plugins.catalogue, [override]).sections.expect["accuracy"].value
        == 0.5
    )


@pytest.mark.parametrize("text", [*TEXTS, "a  b " * 40, "1e3", "null", "true", "", "5", "[1]"])
def test_every_text_is_written_so_that_it_is_read_back(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(to_yaml({"b": {"root": text, "list": [text, 1]}, "a": text}))
    assert read_document(tmp_path / "a.yaml").data == {
        "b": {"root": text, "list": [text, 1]},
        "a": text,
    }

"""Sources listed in a recipe: checked as any section, each fault with the line of its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsl_core.config.document import read_document
from fsl_core.config.further import judge_on
from fsl_core.config.recipe import Recipe, check_document, read_recipe
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import load

CATALOGUE = load(entry_points=False).catalogue
RECIPE = """\
seed: 0
episodes:
  name: mixture
  sources:
  - {name: glyphs, n_way: 3, n_query: 2, weight: 2}
  - {name: mnist, n_way: 3, n_query: 2, split: by-image}
backbone: {name: conv4, channels: 2}
adapter: {name: nearest-centroid}
outer: {steps: 1}
evaluate:
  n_query: 4
  on:
  - {name: glyphs, alphabet: 1}
  - {name: mnist, split: by-image, n_shot: 2, label: digits}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.yaml"
    path.write_text(RECIPE)
    return path


def read(file: Path, *overrides: str) -> Recipe:
    return read_recipe(file, CATALOGUE, overrides)


def test_what_a_further_source_leaves_out_is_as_in_the_own_test(file: Path):
    glyphs, digits = read(file).resolved()["evaluate"]["on"]
    assert {key: glyphs[key] for key in ("n_way", "n_shot", "n_query", "alphabet", "label")} == {
        "n_way": 3,
        "n_shot": 1,
        "n_query": 4,
        "alphabet": 1,
        "label": "glyphs",
    }
    assert (digits["n_way"], digits["n_shot"], digits["n_query"]) == (3, 2, 4)
    assert digits["label"] == "digits"


def test_sizes_of_the_test_go_before_those_of_training(file: Path):
    further = read(file, "evaluate.n_way=4", "evaluate.n_shot=3").sections.evaluate.on
    assert [(each.n_way, each.n_shot) for each in further] == [(4, 3), (4, 2)]


def test_sizes_reach_the_sources_of_a_further_mixture(file: Path):
    nested = "evaluate.on=[{name: mixture, sources: [{name: glyphs}, {name: mnist, n_way: 2}]}]"
    (mixture,) = read(file, nested).sections.evaluate.on
    assert [(each.n_way, each.n_query) for each in mixture.sources] == [(3, 4), (2, 4)]


def test_a_resolved_recipe_means_the_same(file: Path):
    resolved = read(file).resolved()
    assert [each["weight"] for each in resolved["episodes"]["sources"]] == [2.0, 1.0]
    assert read_recipe(resolved, CATALOGUE).resolved() == resolved


@pytest.mark.parametrize(
    ("line", "instead", "fault"),
    [
        (
            "n_query: 2, split: by-image",
            "n_query: 2, splt: by-image",
            "mixed.yaml:6: episodes.sources.1.splt: episodes 'mnist' has no such option. "
            "Did you mean 'split'?",
        ),
        (
            "{name: glyphs, n_way: 3,",
            "{name: glphs, n_way: 3,",
            "mixed.yaml:5: episodes.sources.0.name: episodes 'glphs': no installed plugin offers "
            "it. Did you mean 'glyphs'?",
        ),
        (
            "n_query: 2, weight: 2",
            "n_query: 0, weight: 0",
            "mixed.yaml:5: episodes.sources.0.n_query: found 0. Expected greater than or equal to 1"
            "\nmixed.yaml:5: episodes.sources.0.weight: found 0. Expected greater than 0",
        ),
        (
            "{name: glyphs, alphabet: 1}",
            "{name: glyphs, alphabet: 1, weight: 2}",
            "mixed.yaml:13: evaluate.on.0.weight: episodes 'glyphs' has no such option. "
            "Its options: alphabet, episodes_per_draw, items_per_class, jitter, label, n_query, "
            "n_shot, n_way, name, sampling",
        ),
        (
            "{name: glyphs, alphabet: 1}",
            "glyphs",
            "mixed.yaml:13: evaluate.on.0: no `name`. A mapping such as {name: glyphs}",
        ),
        (
            "label: digits",
            "label: glyphs",
            "mixed.yaml:14: evaluate.on.1: a second source called 'glyphs'. "
            "`label:` with another word",
        ),
        (
            "label: digits",
            "label: a b",
            'mixed.yaml:14: evaluate.on.1.label: found "a b". Expected String should match '
            "pattern '^[\\w.+-]*$'",
        ),
    ],
)
def test_each_fault_has_the_line_of_its_source(file: Path, line: str, instead: str, fault: str):
    text = RECIPE.replace(line, instead, 1)
    assert text != RECIPE
    file.write_text(text)
    with pytest.raises(RecipeError) as raised:
        read(file)
    assert str(raised.value).replace(f"{file.parent}/", "") == fault


def test_a_key_of_one_source_is_changed_by_its_place(file: Path):
    recipe = read(file, "episodes.sources.1.n_shot=1", "evaluate.on.0.jitter=0.5")
    assert recipe.sections.evaluate.on[0].jitter == 0.5
    with pytest.raises(RecipeError, match=r"-s evaluate\.on\.0\.jitter: found 3\. Expected less"):
        read(file, "evaluate.on.0.jitter=3")


@pytest.mark.parametrize("place", ["2", "x", "-1", "1" * 30])
def test_a_place_that_is_not_there(file: Path, place: str):
    found = (
        rf"^-s evaluate\.on\.{place}\.jitter=1: evaluate\.on is a list\. A place in it, 0 \.\. 1$"
    )
    with pytest.raises(RecipeError, match=found):
        read(file, f"evaluate.on.{place}.jitter=1")


def judged(file: Path, *given: str) -> dict:
    document = read_document(read(file).resolved())
    judge_on(document, given)
    (source,) = check_document(document, CATALOGUE).resolved()["evaluate"]["on"]
    return source


def test_another_source_by_its_keys(file: Path):
    source = judged(file, "name=mnist", "split=by-image")
    assert (source["name"], source["split"], source["label"]) == ("mnist", "by-image", "mnist")
    assert (source["n_way"], source["n_query"]) == (3, 4)


def test_a_source_by_its_label_with_a_change(file: Path):
    source = judged(file, "digits", "n_shot=1")
    assert (source["n_shot"], source["label"], source["split"]) == (1, "digits", "by-image")


def test_the_own_episodes_with_a_change(file: Path):
    source = judged(file, "sources.0.jitter=2")
    assert [each["n_query"] for each in source["sources"]] == [4, 4]
    assert source["sources"][0]["jitter"] == 2


def test_the_test_episodes_of_another_recipe(file: Path, tmp_path: Path):
    other = tmp_path / "other.yaml"
    other.write_text(
        "episodes: {name: glyphs, n_way: 5, n_query: 1, alphabet: 3}\nevaluate: {n_query: 9}\n"
    )
    source = judged(file, str(other), "jitter=0")
    assert (source["n_way"], source["n_query"], source["alphabet"]) == (5, 9, 3)
    assert source["jitter"] == 0


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["=3"], r"^--on =3: not a change of episodes\. Such as name=mnist$"),
        (["digits", "glyphs"], r"^--on glyphs: a second recipe\. One recipe, and texts KEY=VALUE$"),
        (["name=glyphs", "jitr=1"], r"^--on: evaluate\.on\.0\.jitr: episodes 'glyphs' has no such"),
        (["nowhere"], r"^nowhere: No such file or directory\. "),
    ],
)
def test_texts_that_mean_nothing(file: Path, given: list[str], fault: str):
    with pytest.raises(RecipeError, match=fault):
        judged(file, *given)

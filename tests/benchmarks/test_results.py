"""The tables of the results: made from kept runs alone, and held to the recipes' `expect:`."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import curves
from benchmarks.kept import RUNS, Row, read_recipes, read_rows
from benchmarks.results import Asked, cells_of, filled, published_of, short_cells, written
from fsl_core.config.recipe import Recipe
from fsl_core.config.sections import Catalogue, Expected
from fsl_core.hooks.loader import load
from fsl_core.reporting.statistics import over_seeds, two_level

NAME = "glyphs-5w1s-hypermaml"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load().catalogue


@pytest.fixture(scope="module")
def recipes(catalogue: Catalogue) -> dict[Path, Recipe]:
    return read_recipes(catalogue)


@pytest.fixture(scope="module")
def rows(catalogue: Catalogue, recipes: dict[Path, Recipe]) -> list[Row]:
    return read_rows(RUNS, catalogue, recipes)


@pytest.fixture
def copied(tmp_path: Path, root: Path) -> Callable[..., Path]:
    """A kept run copied under another name, with another seed and scores moved by `shift`."""

    def copy(name: str, seed: int = 0, shift: float = 0.0) -> Path:
        folder = tmp_path / "runs" / name
        shutil.copytree(RUNS / NAME, folder)
        text = (folder / "recipe.yaml").read_text().replace("seed: 0\n", f"seed: {seed}\n", 1)
        (folder / "recipe.yaml").write_text(text)
        with (folder / "episodes.csv").open() as file:
            rows = list(csv.DictReader(file))
        noise = np.random.default_rng(seed).normal(shift, 0.01, len(rows))
        for row, moved in zip(rows, noise, strict=True):
            row["accuracy"] = str(float(row["accuracy"]) + moved * bool(seed))
        with (folder / "episodes.csv").open("w") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        result = json.loads((folder / "result.json").read_text())
        result["accuracy"] = float(np.mean([float(row["accuracy"]) for row in rows]))
        (folder / "result.json").write_text(json.dumps(result))
        return folder.parent

    return copy


def test_every_table_is_what_the_kept_runs_make(rows: list[Row], recipes: dict[Path, Recipe]):
    pages = written(rows, recipes)
    assert sum(text.count("<!-- end of results -->") for text in pages.values()) > 8
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: `make results`"


def test_kept_runs_hold_no_path_of_a_machine():
    files = [file for file in RUNS.rglob("*") if file.is_file()]
    assert len(files) > 50
    for file in files:
        assert file.suffix in (".yaml", ".json", ".jsonl", ".csv")
        text = file.read_text()
        assert not [mark for mark in ('"/', " /", ": /") if mark in text], file


def test_seeds_of_one_recipe_are_one_row(copied, catalogue: Catalogue, recipes):
    copied("a")
    (row,) = read_rows(copied("b", seed=1, shift=-0.02), catalogue, recipes)
    assert (list(row.runs), row.names) == (["0", "1"], ("a", "b"))
    assert row.file == Path("recipes/glyphs/5w1s-hypermaml.yaml")
    assert row.interval == two_level(np.stack(list(row.scores.values()))).interval
    assert row.interval > row.first.result["interval"]  # seeds vary, too


def test_a_figure_outside_expect_is_told(
    copied, catalogue: Catalogue, recipes, monkeypatch: pytest.MonkeyPatch
):
    (row,) = read_rows(copied("far", seed=1, shift=-0.2), catalogue, recipes)
    (told,) = row.unexpected
    value = row.recipe.sections.expect["accuracy"].value
    recipe = "recipes/glyphs/5w1s-hypermaml.yaml"
    assert told.startswith(f"{recipe}: expect.accuracy is {value} ± 0.015")
    assert "far has 0.75" in told
    monkeypatch.setattr(row.recipe.sections, "expect", {})
    assert "an empty `expect:`, and far is kept" in next(row.unexpected)


def test_a_page_is_filled_in_its_places(copied, catalogue: Catalogue, recipes, tmp_path: Path):
    copied("glyphs-a")
    rows = read_rows(copied("glyphs-b", seed=1), catalogue, recipes)
    page = tmp_path / "page.md"
    ends = "-->\nold\n<!-- end of results -->\n"
    page.write_text(
        f"a\n<!-- results: glyphs-* {ends}b\n<!-- results: expected x/* {ends}"
        f"c\n<!-- results: without {ends}"
    )
    others = {"x/one.yaml": {"mse": Expected(value=0.5, tolerance=0.1)}, "x/two.yaml": {}}
    text = filled(page, rows, [], others)
    assert "old" not in text
    assert "| hypermaml, conv4-32 | `glyphs/5w1s-hypermaml.yaml` [1](" in text
    seconds = round(json.loads((RUNS / NAME / "result.json").read_text())["training_seconds"])
    setting = "| 0, 1 | 600 of `21c82f1a` | transductive | 15 | 600 of 4 tasks"
    assert f"{setting} | {seconds} s |" in text
    assert "| `x/one.yaml` | mse | 0.5 | 0.1 |" in text
    assert "\n- `x/two.yaml`\n" in text
    page.write_text(text)
    assert filled(page, rows, [], others) == text
    with pytest.raises(SystemExit, match=r"results: omniglot-\*: no such kept run"):
        Asked(["omniglot-*"], rows)


def test_differences_are_paired(rows: list[Row], tmp_path: Path):
    words = ["glyphs-5w1s-*", "minus", "glyphs-5w1s-hypermaml"]
    table = Asked(words, rows).table(tmp_path / "page.md", [])
    base, other = (_named(rows, f"glyphs-5w1s-{name}") for name in ("hypermaml", "fiml"))
    difference = (other.first.scores - base.first.scores).mean()
    cells = next(row for row in table.rows if row[0].startswith("fiml"))
    assert cells[1].startswith(f"{difference:+.3f} ± ")
    assert cells[4] == ""  # one seed each
    assert over_seeds(base.scores, other.scores) is None


def test_curves_are_drawn_again_if_their_numbers_changed(rows: list[Row], tmp_path: Path):
    chosen, name = Asked(["omniglot-5w1s-*-finn"], rows).rows, "omniglot-5w1s-maml-finn"
    file = tmp_path / curves.file_of(["omniglot-5w1s-*-finn"])
    steps, wrong = curves.series(RUNS / name, "accuracy")
    first = json.loads((RUNS / name / "metrics.jsonl").read_text().splitlines()[0])
    assert (steps[0], wrong[0]) == (first["step"], 1 - first["accuracy"])
    text = curves.drawn(chosen, file)
    assert name in "".join(ElementTree.fromstring(text).itertext())
    file.write_text(text + "<!-- by another matplotlib -->")
    assert curves.drawn(chosen, file) == file.read_text()
    file.write_text("<!-- of other numbers -->")
    assert curves.drawn(chosen, file) == text


def test_published_figures_stand_beside_their_method(rows: list[Row]):
    of = {"episodes": "glyphs", "n_way": 5, "adapter": "hypermaml"}
    figure = {"of": of, "figure": "98.7", "source": "A 2017", "standing": "paper text"}
    row = _named(rows, NAME)
    figures = [figure, {**figure, "of": {**of, "n_way": 20}}]
    told = cells_of(row, RUNS / "index.md", figures)["published"]
    assert told == "98.7 (A 2017; paper text; another protocol)"
    told = short_cells(row, RUNS / "index.md", figures)["published"]
    assert told == "98.7 (A 2017; another protocol)"
    ((_, protocol),) = published_of(row, [{**figure, "protocol": row.file.as_posix()}])
    assert protocol == "the same protocol"


def test_a_column_that_is_empty_in_every_row_is_left_out(rows: list[Row]):
    of = {"episodes": "glyphs", "n_way": 5, "adapter": "hypermaml"}
    figure = {"of": of, "figure": "98.7", "source": "A 2017", "standing": "paper text"}
    asked = Asked(["glyphs-5w1s-fiml", "glyphs-5w1s-hypermaml", "short"], rows)
    page = RUNS / "index.md"
    assert asked.table(page, []).headings == ["method", "recipe", "accuracy", "seeds"]
    table = asked.table(page, [figure])
    assert table.headings[-1] == "published"
    assert sorted(row[-1] for row in table.rows) == ["", "98.7 (A 2017; another protocol)"]


def test_what_is_published_belongs_to_the_shape_in_test(rows: list[Row]):
    """R2-D2 is trained on 20 classes with 1 to 9 shots, and judged on 5 with one."""
    of = {"n_way": 5, "n_shot": 1, "backbone": "r2d2"}
    figure = {"of": of, "figure": "60", "source": "A 2017", "standing": "paper text"}
    row = _named(rows, "cifar-fs-r2d2-64")
    assert len([*published_of(row, [figure, {**figure, "of": {**of, "n_way": 20}}])]) == 1
    assert cells_of(row, RUNS / "index.md", [])["steps"].endswith(" of 1 task")


def test_a_run_that_was_ended_early_is_one_of_its_recipe(
    recipes: dict[Path, Recipe], tmp_path: Path
):
    name = "omniglot-5w1s-maml-finn"
    shutil.copytree(RUNS / name, tmp_path / name)
    recipe, result = tmp_path / name / "recipe.yaml", tmp_path / name / "result.json"
    recipe.write_text(recipe.read_text().replace("steps: 60000", "steps: 26938"))
    change = {"at": 26938, "from": 60000, "to": 26938, "differs": []}
    told = {**json.loads(result.read_text()), "steps": 26938, "steps_changed": [change]}
    result.write_text(json.dumps(told))
    (row,) = read_rows(tmp_path, load().catalogue, recipes)
    assert row.file == Path("recipes/omniglot/5w1s-maml-finn.yaml")
    assert row.recipe.sections.outer.steps == 60000
    of = {"adapter": "maml"}
    figure = {"of": of, "figure": "98.7", "source": "A 2017", "standing": "paper text"}
    ((_, protocol),) = published_of(row, [{**figure, "protocol": row.file.as_posix()}])
    assert protocol == "the same protocol, 26938 of its 60000 steps"


def test_a_run_that_went_on_elsewhere_names_both(rows: list[Row]):
    gpu, processor = _named(rows, "omniglot-5w1s-maml-finn").processors
    assert gpu == "a GPU"
    assert "Xeon" in processor


def test_every_recipe_without_a_figure_is_listed(recipes: dict[Path, Recipe], root: Path):
    listed = (root / "docs" / "results" / "index.md").read_text()
    empty = [file for file, recipe in recipes.items() if not recipe.sections.expect]
    for file in empty:
        assert f"- `{file.relative_to('recipes').as_posix()}`" in listed


def _named(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if name in row.names)

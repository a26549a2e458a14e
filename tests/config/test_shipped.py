"""Recipes that travel with core are found by name, from a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsl_core.config import shipped
from fsl_core.config.shipped import find_recipe, shipped_recipes, summary_of
from fsl_core.errors import RecipeError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as a wheel installs it, with three recipes."""
    folder = tmp_path / "site-packages" / "fsl_core"
    for name in ("glyphs/5w1s-maml", "omniglot/5w1s-maml", "glyphs/5w1s-ridge"):
        file = folder / "recipes" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}")
    monkeypatch.setattr(shipped, "PACKAGE", folder)
    return folder


def test_names_are_those_of_the_files(package: Path):
    assert list(shipped_recipes()) == [
        "glyphs/5w1s-maml",
        "glyphs/5w1s-ridge",
        "omniglot/5w1s-maml",
    ]
    assert find_recipe(Path("glyphs/5w1s-maml")).read_text() == "# glyphs/5w1s-maml"


def test_a_folder_recipes_beside_the_package_is_not_ours(tmp_path: Path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "other.yaml").touch()
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "fsl_core")
    assert shipped_recipes() == {}
    (tmp_path / "pyproject.toml").touch()  # a checkout
    assert list(shipped_recipes()) == ["other"]


def test_a_checkout_has_all_recipes_of_the_repository():
    files = {file.resolve() for file in (ROOT / "recipes").rglob("*.yaml")}
    assert {file.resolve() for file in shipped_recipes().values()} == files


def test_a_file_of_that_path_goes_first(package: Path, tmp_path: Path):
    (tmp_path / "glyphs").mkdir()
    (tmp_path / "glyphs" / "5w1s-maml").write_text("mine")
    assert find_recipe(Path("glyphs/5w1s-maml")) == Path("glyphs/5w1s-maml")


@pytest.mark.parametrize(
    ("given", "fitting"),
    [
        ("glyphs/5w1s-mamal", "Did you mean the shipped recipe glyphs/5w1s-maml?"),
        ("glyphs/5W1S-ridge", "Did you mean the shipped recipe glyphs/5w1s-ridge?"),
        ("5w1s-ridge", "Did you mean the shipped recipe glyphs/5w1s-ridge?"),
        (
            "5w1s-maml.yaml",
            "Did you mean the shipped recipe glyphs/5w1s-maml or omniglot/5w1s-maml?",
        ),
        ("recipes/glyphs/5w1s-maml.yaml", "Did you mean the shipped recipe glyphs/5w1s-maml?"),
        ("mine.yaml", "A recipe file in YAML, or a name that `fsl recipes` lists"),
    ],
)
def test_an_unknown_name_gets_the_nearest(package: Path, given: str, fitting: str):
    with pytest.raises(RecipeError) as caught:
        find_recipe(Path(given))
    assert str(caught.value) == f"{given}: No such file or directory. {fitting}"


def test_a_summary_is_taken_from_the_head():
    assert (
        summary_of("# fsl run recipes/a.yaml        no download\n# more\nseed: 0") == "no download"
    )
    assert (
        summary_of("# fsl run recipes/a.yaml -s x=1\n# The protocol.\nseed: 0") == "The protocol."
    )
    assert summary_of("seed: 0\n") == ""
    for file in shipped_recipes().values():
        assert summary_of(file.read_text(encoding="utf-8")), file


def test_a_file_beside_it_is_nearer(package: Path, tmp_path: Path):
    (tmp_path / "5w1s-ridge.yaml").touch()
    for given in ("5w1s-ridge.yml", "5w1s-ridg.yaml", "5w1s-ridge"):
        with pytest.raises(RecipeError) as caught:
            find_recipe(Path(given))
        assert str(caught.value).endswith("Did you mean 5w1s-ridge.yaml?")


def test_a_run_is_no_recipe(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match="run: a run. `fsl resume run`, or a recipe file in YAML"):
        find_recipe(Path("run"))

"""`fsl recipes`, and names of recipes in place of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsl_core import __version__
from fsl_core.cli import app
from fsl_core.config import shipped
from fsl_core.errors import RecipeError

TOY = "# fsl run recipes/toys/toy.yaml        a toy, in seconds\nrequires: [torch, fsl-absent>=2]\n"


@pytest.fixture
def package(toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the toy recipe, and one of a matrix that requires what is not installed."""
    folder = tmp_path / "site-packages" / "fsl_core" / "recipes" / "toys"
    folder.mkdir(parents=True)
    (folder / "toy.yaml").write_text(toy_recipe.read_text())
    (folder / "fslplugin.py").write_text((tmp_path / "fslplugin.py").read_text())
    (folder / "many.yaml").write_text(TOY + toy_recipe.read_text() + "matrix: {seed: [0, 1]}\n")
    monkeypatch.setattr(shipped, "PACKAGE", folder.parent.parent)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    return folder


def fsl(*arguments: str):
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done


def test_the_list_says_what_is_needed(package: Path):
    listed = fsl("recipes").stdout
    assert "toys/many  fsl sweep  a toy, in seconds  torch, fsl-absent>=2 (not installed)" in listed
    rows = json.loads(fsl("recipes", "--json").stdout)
    assert [row["name"] for row in rows] == ["toys/many", "toys/toy"]
    assert rows[0] == {
        "name": "toys/many",
        "command": "sweep",
        "summary": "a toy, in seconds",
        "requires": {
            "torch": "",
            "fsl-absent>=2": "fsl-absent is not installed. pip install 'fsl-absent>=2'",
        },
        "file": str(package / "many.yaml"),
    }


def test_one_is_printed_as_it_is(package: Path):
    text = (package / "many.yaml").read_text()
    assert fsl("recipes", "toys/many").stdout == text
    assert json.loads(fsl("recipes", "toys/many", "--json").stdout)["text"] == text
    unknown = CliRunner().invoke(app, ["recipes", "toys/tov"])
    assert isinstance(unknown.exception, RecipeError)
    assert str(unknown.exception).endswith("Did you mean the shipped recipe toys/toy?")


def test_commands_take_names(package: Path, tmp_path: Path):
    short = ["-s", "outer.steps=1", "-s", "evaluate.episodes=2", "-s", "outer.validate_every=0"]
    ran = fsl("run", "toys/toy", *short)
    told = f"toys/toy: the recipe that comes with fsl-core, {package / 'toy.yaml'}\n"
    assert ran.stderr.startswith(told)
    assert ran.stdout.startswith("test accuracy ")
    assert (tmp_path / "runs" / "toy" / "result.json").is_file()
    assert fsl("check", "toys/toy").stdout.startswith(f"{package / 'toy.yaml'}: ok. ")
    expect = ["-s", "expect.accuracy={value: 0.5, tolerance: 0.5}"]
    assert "reproduced: accuracy" in fsl("reproduce", "toys/toy", *short, *expect).stdout
    for command in ("run", "check", "reproduce", "sweep"):
        unknown = CliRunner().invoke(app, [command, "toys/tov"])
        assert str(unknown.exception).endswith("Did you mean the shipped recipe toys/toy?")


def test_a_file_of_that_path_goes_first_and_says_so(package: Path, tmp_path: Path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy").write_text((tmp_path / "toy.yaml").read_text())
    (tmp_path / "toys" / "fslplugin.py").write_text((tmp_path / "fslplugin.py").read_text())
    checked = fsl("check", "toys/toy")
    told = checked.stderr.splitlines()
    assert told[0] == "toys/toy: the file here, not the recipe that comes with fsl-core"
    assert [line.partition(" ")[0] for line in told[1:]] == ["imported"]
    assert checked.stdout.startswith("toys/toy: ok. ")


def test_the_version_is_told():
    assert fsl("--version").stdout == f"fsl-core {__version__}\n"

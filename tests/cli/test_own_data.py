"""docs/own-data.md, followed step by step: each file is written as it stands there, each command is
run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fsl_core
from fsl_core.cli import app
from tests.parts.own_data import FENCE, PAGE, TITLED

ROOT = Path(__file__).parents[2]
QUICK = ["-s", "evaluate.episodes=4", "-s", "execution.mode=loop", "-s", "outer.validate_every=0"]


@pytest.mark.slow
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes" / "arrays", tmp_path / "recipes" / "arrays")
    for title, content in TITLED.items():
        (tmp_path / title).write_text(content)
    said = {}
    for language, _, content in FENCE.findall(PAGE):
        for line in content.splitlines() if language == "sh" else ():
            program, *arguments = shlex.split(line)
            if program == "python":
                exec((tmp_path / arguments[0]).read_text(), {})
            else:
                assert program == "fsl", line
                said[line] = fsl(*arguments)
    assert "train: 10 classes" in said["fsl check --data recipes/arrays/digits-5w1s-maml.yaml"]
    assert len(said) == 5


def fsl(*arguments: str) -> str:
    quick = [*QUICK, *steps(arguments[1])] if arguments[0] == "run" else []
    done = CliRunner().invoke(app, [*arguments, *quick])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def steps(recipe: str) -> list[str]:
    """Two outer steps, if the recipe trains."""
    return [] if "steps: 0" in Path(recipe).read_text() else ["-s", "outer.steps=2"]


def test_a_table_that_is_too_short_is_found_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for title in ("fslplugin.py", "texts.yaml", "make_texts.py"):
        (tmp_path / title).write_text(TITLED[title])
    exec(TITLED["make_texts.py"], {})
    done = CliRunner().invoke(app, ["run", "texts.yaml", "-s", "backbone.vocabulary=99"])
    assert isinstance(done.exception, fsl_core.PluginError)
    assert re.search(
        r"Words of fslplugin\.py: forward raised IndexError: index out of range in self "
        r"\(fslplugin\.py:15\)\. FSL_STRICT_PLUGINS=1",
        str(done.exception),
    )

"""A run directory, a predictor or a recipe from somebody else, on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

QUICK = [
    *("-s", "outer.steps=2", "-s", "outer.validate_every=0", "-s", "evaluate.episodes=4"),
    *("--out", "run"),
]


@pytest.fixture(autouse=True)
def _new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_STATE", str(tmp_path / "state"))


@pytest.fixture
def received(call, toy_recipe: Path, tmp_path: Path) -> Path:
    """A finished run whose plugin this user has never run, as from an archive: it leaves a mark."""
    assert call("run", "toy.yaml", *QUICK).code == 0
    shutil.rmtree(tmp_path / "state")
    with (tmp_path / "fslplugin.py").open("a") as file:
        file.write("\n__import__('pathlib').Path('ran').touch()\n")
    return tmp_path / "run"


COMMANDS = [
    ["eval", "run"],
    ["resume", "run"],
    ["predict", "run", "--support", ".", "--query", "."],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_nothing_of_a_received_run_is_executed(call, received: Path, command: list[str]):
    ended = call(*command)
    plugin = received.parent / "fslplugin.py"
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"run/environment.json: one-file plugin {str(plugin)!r} is not known to you. Read it, then "
        "--trust-plugins to run it, or --no-plugin fslplugin to go without it\n"
    )
    assert not Path("ran").exists()


def test_its_report_is_written_without_what_would_run(call, received: Path):
    (received / "report.html").unlink()
    ended = call("report", "run")
    assert (ended.code, ended.out) == (0, "report: run/report.html\n")
    assert ended.err.startswith("without episodes: run/environment.json: one-file plugin ")
    assert len(ended.err.splitlines()) == 1
    assert "is not known to you" in (received / "report.html").read_text()
    assert not Path("ran").exists()


def test_the_user_may_trust_it_once_and_is_told_each_time(call, received: Path):
    told = f"imported {received.parent / 'fslplugin.py'}, a one-file plugin that run/environment"
    for arguments in (["eval", "run", "--trust-plugins"], ["resume", "run"], ["eval", "run"]):
        ended = call(*arguments)
        assert ended.code == 0, ended.err
        assert ended.err.startswith(told)
        assert "it has changed since" in ended.err
        assert Path("ran").exists()


def test_the_user_may_name_a_file_of_his_own(call, received: Path, toy_recipe: Path):
    mine = received.parent / "mine"
    mine.mkdir()
    text = (
        (received.parent / "fslplugin.py")
        .read_text()
        .replace("__import__('pathlib').Path('ran').touch()", "")
    )
    (mine / "fslplugin.py").write_text(text)
    for command in ("eval", "resume"):
        ended = call(command, "run", "--plugins-dir", "mine")
        assert (ended.code, ended.err) == (0, "--plugins-dir mine: fslplugin.py\n")
    assert not Path("ran").exists()


def test_an_empty_list_of_plugins_stops_them(call, received: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    ended = call("eval", "run", "--trust-plugins")
    assert ended.code == 2
    assert "run/recipe.yaml:" in ended.err
    assert "fslplugin (FSL_LOAD_PLUGINS)" in ended.err
    assert not Path("ran").exists()


def test_check_imports_what_lies_beside_a_recipe_and_says_so(call, toy_recipe: Path):
    plugin = toy_recipe.parent / "fslplugin.py"
    plugin.write_text(plugin.read_text() + "\n__import__('pathlib').Path('ran').touch()\n")
    ended = call("check", "toy.yaml")
    assert ended.out.startswith("toy.yaml: ok. ")
    assert ended.err == f"imported {plugin}\n"
    assert Path("ran").exists()
    assert "Imports fslplugin.py from beside the recipe" in call("check", "--help").out


@pytest.mark.parametrize("command", ["check", "run", "reproduce", "sweep"])
def test_a_recipe_can_be_taken_without_it(call, toy_recipe: Path, command: str):
    plugin = toy_recipe.parent / "fslplugin.py"
    plugin.write_text("__import__('pathlib').Path('ran').touch()\n")
    if command == "sweep":
        toy_recipe.write_text(toy_recipe.read_text() + "matrix: {seed: [0, 1]}\n")
    ended = call(command, "toy.yaml", "--no-local-plugin")
    assert ended.code == 2
    assert "episodes 'blobs': no installed plugin offers it" in ended.err
    assert not Path("ran").exists()


def test_a_recipe_inside_a_received_run_has_no_more_rights(call, received: Path):
    """`eval` and `resume` do not look for a plugin beside recipe.yaml."""
    (received / "fslplugin.py").write_text("__import__('pathlib').Path('ran').touch()\n")
    environment = json.loads((received / "environment.json").read_text())
    for files in ([], {}, ["fslplugin.py"], {"run/fslplugin.py": ""}):
        changed = {**environment, "plugin_files": files}
        (received / "environment.json").write_text(json.dumps(changed))
        assert call("eval", "run").code == 2
    assert not Path("ran").exists()


def test_a_sweep_runs_the_plugin_that_it_was_given(fsl, toy_recipe: Path, tmp_path: Path):
    """Its processes are told by the sweep, where no list of trusted files can be written."""
    toy_recipe.write_text(
        toy_recipe.read_text().replace("steps: 12", "steps: 2") + "matrix: {seed: [0]}\n"
    )
    (tmp_path / "state").write_text("a file, so that nothing is remembered")
    ended = fsl(
        *("sweep", toy_recipe, "--out", "out"),
        FSL_LOAD_PLUGINS="",
        FSL_STATE=str(tmp_path / "state"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "[1/1] seed 0: finished" in ended.stderr

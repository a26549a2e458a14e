"""`fsl tune-execution`, and what `run` and `check` say of the execution."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsl_core.cli import app
from fsl_core.engine import choice

AUTO = ("-s", "execution.mode=auto", "-s", "outer.steps=2", "-s", "evaluate.episodes=2")


@pytest.fixture(autouse=True)
def stopwatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    seconds = {"vmap": 0.5}

    def timed(self, execution, batches=3):
        if execution.mode == "vmap" and not seconds["vmap"]:
            raise RuntimeError("no vmap here")
        yield seconds.get(str(execution), 1.0)

    monkeypatch.setattr(choice._Trials, "_timed", timed)
    return seconds


def fsl(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_run_and_check_say_how_the_execution_was_settled(toy_recipe: Path):
    assert "execution" not in fsl("check", toy_recipe, *AUTO)
    vmap = "execution vmap: all tasks as one batch were fastest"
    assert f"{vmap} (measured on 20" in fsl("run", toy_recipe, *AUTO, "--out", "a")
    assert f"{vmap} (measured before, on 20" in fsl("run", toy_recipe, *AUTO, "--out", "b")
    assert f"{vmap} (measured before, on 20" in fsl("check", toy_recipe, *AUTO)
    assert "execution" not in fsl("check", toy_recipe)  # which names a mode


def test_tuning_prints_seconds_and_what_changes(toy_recipe: Path, stopwatch):
    lines = fsl("tune-execution", toy_recipe, *AUTO).splitlines()
    assert lines[0].split() == ["loop", "1", "s"]
    assert lines[-2].split() == ["vmap", "0.5", "s"]
    vmap = "vmap: all tasks as one batch were fastest"
    assert lines[-1] == f"execution {vmap}. Every later run of this recipe takes it"
    assert fsl("tune-execution", toy_recipe, *AUTO).splitlines()[-1] == (
        f"execution {vmap}. As before"
    )
    stopwatch["vmap"] = 0.0
    lines = fsl("tune-execution", toy_recipe, *AUTO).splitlines()
    assert lines[-2].split() == ["vmap", "failed"]
    assert lines[-1] == (
        "execution loop: one task at a time was fastest; vmap failed: no vmap here. "
        f"It was {vmap}. Later runs differ from earlier ones by rounding"
    )


def test_tuning_for_machines(toy_recipe: Path):
    found = json.loads(fsl("tune-execution", toy_recipe, *AUTO, "--json"))
    assert found["before"] is None
    assert found["now"]["mode"] == "vmap"
    assert (
        json.loads(fsl("tune-execution", toy_recipe, *AUTO, "--json"))["before"]["mode"] == "vmap"
    )

"""A run that is a trial of a search ends with its validation, until it is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import DivergedError, RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.environment import describe_environment
from fsl_core.runs.opening import prepare_run
from fsl_core.runs.trial import TrialRecord, describe, is_done, read_trial, read_validated

RECORD = TrialRecord("plain", [3], {"outer.optimizer.lr": 0.01})


@pytest.fixture
def trial(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    def prepared(*overrides: str) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        RECORD.write(run)
        recipe = read_recipe(toy_recipe, toy_plugins.catalogue, overrides)
        environment = describe_environment(toy_plugins.plugins)
        named = {"recipe": "toy", "device": "cpu", "plugin_files": toy_plugins.files}
        prepare_run(run, recipe, {**environment, **named})
        return run

    return prepared


def resume(run: Path) -> fsl.RunResult:
    return fsl.resume(run, trust_plugins=True, progress=False)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_trial_is_not_tested_until_it_is_chosen(trial, checkpoint: str):
    run = trial(f"evaluate.checkpoint={checkpoint}", "outer.optimizer.lr=0.3")
    assert not is_done(run)
    result = resume(run)
    assert str(result).startswith("validation accuracy 0.")
    records = [record for record in result.metrics if record.get("split") == "validation"]
    by_step = {record["step"]: record["accuracy"] for record in records}
    best = max(by_step, key=lambda step: (by_step[step], -step))
    found = read_validated(run)
    assert found.step == (best if checkpoint == "best" else 12)
    assert found.score == by_step[found.step] == result.score
    assert is_done(run)
    assert not {"result.json", "episodes.csv", "report.html"} & {p.name for p in run.iterdir()}
    assert describe(run).startswith(f"validation accuracy {found.score:.4f} ± ")

    weights = (run / "checkpoints" / "last.safetensors").read_bytes()
    read_trial(run)._replace(test=True).write(run)
    assert not is_done(run)
    assert str(resume(run)).startswith("test accuracy ")
    assert is_done(run)
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == weights


def test_a_loss_that_is_not_finite_is_an_outcome(trial):
    run = trial("adapter={name: explodes, at_progress: 0.5}", "outer.optimizer.lr=0.01")
    with pytest.raises(DivergedError):
        resume(run)
    assert is_done(run)
    assert read_validated(run).score is None
    assert describe(run).startswith("failed: outer step 7, episode 12: the loss is nan")


def test_a_damaged_record_is_named(trial):
    run = trial()
    (run / "trial.json").write_text(json.dumps({"method": "plain", "numbers": [0]}))
    with pytest.raises(RunError, match=r"trial\.json: no 'parameters'\."):
        is_done(run)

"""Recipes with these weightings: what is refused before a run, and that a run goes on exactly after
an interruption."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fsl_core as fsl
from fsl_core.cli import app

RECIPE = """
seed: 0
episodes: {name: sinusoid, n_shot: 5, n_query: 5, tasks: 6}
backbone: {name: mlp, hidden: [8, 8]}
adapter: {name: shift}
outer:
  weighting: {name: uniform}
  meta_batch_size: 4
  steps: 8
  validate_every: 0
  checkpoint_every: 3
evaluate: {episodes: 2}
"""
PLUGIN = '''
"""A regression adapter, and a hook that stops the process in the middle of a run."""
import os

from torch import nn

import fsl_core as fsl


class Shift(fsl.Adapter):
    """A linear head, moved by the mean error on the support set."""

    name = "shift"

    def __init__(self, task, backbone):
        super().__init__()
        self.head = nn.Linear(backbone.feature_dim, task.output_dim)

    def adapt(self, backbone, support):
        error = (support.y - self.head(backbone(support.x))).mean(0)
        return lambda x: self.head(backbone(x)) + error


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Shift)


@fsl.hookimpl
def fsl_step_finished(run, step, metrics):
    if os.environ.get("STOP_AT") == str(step):
        raise GeneratorExit  # nothing handles it, so the run ends as if its process had died
'''
WEIGHTINGS = [
    "{name: gradient-similarity, gradient: head, temperature: 0.3}",
    "{name: uncertainty, of: task}",
    "{name: conflict-free, method: pcgrad}",
    "{name: memory}",
]  # one that compares gradients, one with parameters, one that draws, one that remembers


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe and its plugin, and of what is installed these weightings alone."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "fslplugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "weighted-outer-loss")


def command(*arguments: str) -> Result:
    """`fsl` with these arguments, in this process."""
    return CliRunner().invoke(app, [*arguments])


def test_a_part_that_does_not_exist_is_refused_before_anything_runs():
    weighting = "outer.weighting={name: gradient-similarity, gradient: neck.*}"
    refused = command("check", "recipe.yaml", "-s", weighting)
    assert isinstance(refused.exception, fsl.RecipeError)
    message = (
        "-s outer.weighting: gradient-similarity: gradient: 'neck.*': no such parameter. "
        "all, head, last-block, or a pattern over backbone."
    )
    assert str(refused.exception).startswith(message)


@pytest.mark.parametrize("weighting", ["{name: memory}", "{name: uncertainty, of: task}"])
def test_tasks_that_come_once_are_refused_where_they_must_be_told_apart(weighting):
    chosen = ["check", "recipe.yaml", "-s", f"outer.weighting={weighting}"]
    refused = command(*chosen, "-s", "episodes.tasks=null")
    assert isinstance(refused.exception, fsl.RecipeError)
    assert "these episodes have no finite set of tasks to tell apart" in str(refused.exception)
    assert command(*chosen).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch, weighting):
    chosen = ("-s", f"outer.weighting={weighting}")
    assert command("run", "recipe.yaml", *chosen, "--out", "whole").exit_code == 0
    monkeypatch.setenv("STOP_AT", "5")
    with pytest.raises(GeneratorExit):
        command("run", "recipe.yaml", *chosen, "--out", "parts")
    assert not (tmp_path / "parts" / "result.json").exists()
    monkeypatch.delenv("STOP_AT")
    resumed = command("resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    for file in ("checkpoints/last.safetensors", "episodes.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["weighting"] in weighting

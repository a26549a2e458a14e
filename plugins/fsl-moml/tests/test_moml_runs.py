"""Runs with a memory: what is refused before them, how they are computed, and exact resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

import fsl_core as fsl
from fsl_core.cli import app
from fsl_core.testing import GradientSteps, TinyBackbone, tiny_episodes, tiny_task
from fsl_moml import Memory

RECIPE = """
seed: 0
episodes: {name: sinusoid, n_shot: 7, n_query: 5, grid: {amplitudes: 2, phases: 2}, order: random}
backbone: {name: mlp, hidden: [8, 8]}
adapter: {name: gradient-steps, inner_steps: 1}
outer:
  hypergradient: {name: memory}
  optimizer: {name: sgd, lr: 0.01}
  meta_batch_size: 3
  steps: 8
  validate_every: 0
  checkpoint_every: 3
evaluate: {episodes: 2}
"""
PLUGIN = '''
"""An adapter with inner steps, and a hook that stops the process in the middle of a run."""
import os

import fsl_core as fsl
from fsl_core.testing import GradientSteps


@fsl.hookimpl
def fsl_register_adapters(register):
    register(GradientSteps)


@fsl.hookimpl
def fsl_step_finished(run, step, metrics):
    if os.environ.get("STOP_AT") == str(step):
        raise GeneratorExit  # nothing handles it, so the run ends as if its process had died
'''
V2 = "{name: memory, variant: v2, beta: 0.1}"
LOCAL = "{name: memory, variant: local, local_lr: 0.01}"


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe and its plugin, and of what is installed this package alone."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "fslplugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "moml")


def command(*arguments: str) -> Result:
    """`fsl` with these arguments, in this process."""
    return CliRunner().invoke(app, [*arguments])


def test_tasks_that_come_once_are_refused():
    once = ["-s", "episodes={name: sinusoid, n_shot: 7, n_query: 5}"]
    refused = command("check", "recipe.yaml", *once)
    assert isinstance(refused.exception, fsl.RecipeError)
    assert "memory: these episodes have no finite set of tasks" in str(refused.exception)
    told = command("check", "recipe.yaml", *once, "-s", f"outer.hypergradient={LOCAL}")
    assert told.exit_code == 0


def test_more_memory_than_allowed_is_refused_before_a_run():
    limited = "outer.hypergradient={name: memory, at_most_bytes: 100}"
    refused = command("check", "recipe.yaml", "-s", limited)
    assert "at_most_bytes is 100. A larger limit" in str(refused.exception)


@pytest.mark.parametrize("variant", ["{name: memory}", V2])
def test_a_measured_execution_is_the_loop_and_says_why(tmp_path, variant):
    chosen = ("-s", f"outer.hypergradient={variant}", "-s", "outer.steps=2")
    told = command("run", "recipe.yaml", *chosen, "--out", "measured")
    assert told.exit_code == 0, told.output
    result = json.loads((tmp_path / "measured" / "result.json").read_text())
    assert result["execution"].startswith("loop: one task at a time: a task moves hypergradient.")
    named = (*chosen, "-s", "execution.mode=loop", "-s", "execution.workers=1")
    assert command("run", "recipe.yaml", *named, "--out", "named").exit_code == 0
    measured, named_too = (
        load_file(tmp_path / run / "checkpoints" / "last.safetensors")
        for run in ("measured", "named")
    )
    assert measured.keys() == named_too.keys()
    for name, tensor in measured.items():  # trials before training left nothing in the memory
        assert torch.equal(tensor, named_too[name]), name


def test_batches_and_workers_become_the_loop(tmp_path):
    batched = ("-s", "execution.mode=vmap", "-s", "outer.steps=1")
    assert command("run", "recipe.yaml", *batched, "--out", "batched").exit_code == 0
    result = json.loads((tmp_path / "batched" / "result.json").read_text())
    assert "hypergradient 'memory' takes one task at a time" in result["execution"]


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_a_state_dict_goes_on_as_if_nothing_had_happened(variant):
    task = tiny_task("regression")
    options = {"variant": variant, "meta_batch_size": 2}
    backbone = TinyBackbone()
    adapter, whole = GradientSteps(task, backbone, 1), Memory(task, 4, **options)
    learner = fsl.Learner(backbone, adapter, whole)
    for episode in tiny_episodes(task, 3).unbatch():
        learner.objective(episode, task.loss)
    learner.on_step(torch.tensor([0, 1]))
    fresh = Memory(task, 4, **options)
    fresh.load_state_dict(whole.state_dict())
    resumed = fsl.Learner(backbone, adapter, fresh)
    for episode in tiny_episodes(task, 4, seed=1).unbatch():
        values = [at.objective(episode, task.loss)[0] for at in (learner, resumed)]
        assert torch.equal(*values)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Memory(task, 5, **options).load_state_dict(whole.state_dict())


@pytest.mark.parametrize("variant", ["{name: memory}", V2, LOCAL])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch, variant):
    chosen = ("-s", f"outer.hypergradient={variant}")
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

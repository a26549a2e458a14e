"""A run of no outer steps: nothing is trained, and what is there is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fsl_core.assembly.experiment import build_experiment, build_optimizer
from fsl_core.cli import app
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs.checkpoints import progress_of
from fsl_core.runs.opening import new_run, open_run
from fsl_core.training.outer_loop import train

FROZEN = """
import torch

import fsl_core as fsl


class Fixed(torch.nn.Module):
    \"\"\"A map that nobody trains.\"\"\"

    name = "fixed"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.feature_dim = 2
        self.map = torch.nn.Linear(task.input_shape[0], 2).requires_grad_(False)

    def forward(self, x):
        return self.map(x)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Fixed)
"""
UNTRAINED = ["-s", "backbone={name: fixed}", "-s", "outer.steps=0"]


@pytest.fixture
def frozen(toy_recipe: Path) -> Path:
    """The toy recipe, with a backbone beside it that has no trainable parameter."""
    beside = toy_recipe.parent / "fslplugin.py"
    (toy_recipe.parent / "plugins").mkdir()
    (toy_recipe.parent / "plugins" / "fixed.py").write_text(FROZEN)
    (toy_recipe.parent / "plugins" / "blobs.py").write_text(beside.read_text())
    beside.unlink()
    return toy_recipe


def fsl(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def plugins_of(recipe: Path) -> Loaded:
    files = sorted((recipe.parent / "plugins").glob("*.py"))
    return load(entry_points=False, files=files)


def test_steps_with_nothing_to_train_are_refused(frozen: Path):
    loaded = plugins_of(frozen)
    recipe = read_recipe(frozen, loaded.catalogue, ["backbone={name: fixed}"])
    message = (
        r"toy\.yaml:8: outer\.steps: 12 steps with nothing to train: adapter 'nearest-centroid' "
        r"and backbone 'fixed' have no parameter that requires a gradient\. "
        r"A backbone that is trained, or outer\.steps: 0 to evaluate this one as it is$"
    )
    with pytest.raises(RecipeError, match=message):
        build_optimizer(recipe, build_experiment(recipe))


def test_no_optimizer_is_built_over_nothing(frozen: Path):
    recipe = read_recipe(
        frozen, plugins_of(frozen).catalogue, ["backbone={name: fixed}", "outer.steps=0"]
    )
    assert build_optimizer(recipe, build_experiment(recipe)) is None


def test_a_run_of_no_steps_is_judged_resumed_and_judged_again(frozen: Path, tmp_path: Path):
    plugins = ["--plugins-dir", frozen.parent / "plugins"]
    assert "ok" in fsl("check", frozen, *plugins, *UNTRAINED).stdout
    ran = fsl("run", frozen, *plugins, *UNTRAINED, "--out", "run")
    assert ran.exit_code == 0, ran.output
    assert "not trained" in ran.stdout
    assert "execution loop: nothing is trained" in ran.stdout
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert 0.3 < result["accuracy"] <= 1
    assert (result["steps"], result["checkpoint_step"], result["training_seconds"]) == (0, 0, 0)
    assert (run / "metrics.jsonl").read_text() == ""
    assert progress_of(run / "checkpoints" / "last.safetensors") == {"best": None, "step": 0}
    page = (run / "report.html").read_text()
    assert "accuracy of each test episode" in page
    assert "Loss of the training episodes" not in page
    (run / "result.json").unlink()
    again = fsl("resume", run)
    assert again.exit_code == 0, again.output
    assert json.loads((run / "result.json").read_text())["accuracy"] == result["accuracy"]
    judged = fsl("eval", run, "--json")
    assert json.loads(judged.stdout)["accuracy"] == result["accuracy"]
    assert fsl("report", run).exit_code == 0


def test_weights_that_could_be_trained_stay_as_they_begin(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    schedules = ["outer.steps=0", "outer.schedule={name: cosine}", "execution.mode=vmap"]
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, schedules)
    before = build_experiment(recipe).learner.state_dict()
    files = [toy_recipe.parent / "fslplugin.py"]
    with new_run(tmp_path / "run", recipe, toy_plugins, torch.device("cpu"), files) as run:
        train(run)
    with open_run(tmp_path / "run", torch.device("cpu"), write=False) as opened:
        assert opened.restore_for_evaluation() == "last"
        for name, tensor in opened.experiment.learner.state_dict().items():
            assert torch.equal(tensor, before[name])


def test_training_data_is_not_asked_for(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, ["outer.steps=0"])
    asked = []
    blobs = recipe.chosen["episodes",].factory
    monkeypatch.setattr(blobs, "check", lambda self, split, task=None: asked.append(split))
    with new_run(tmp_path / "run", recipe, toy_plugins, torch.device("cpu"), []):
        pass
    assert asked == ["test"]


def test_an_adapter_is_told_that_training_is_over(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    changed = ["outer.steps=0", "adapter={name: explodes, at_progress: 2}"]
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, changed)
    with new_run(tmp_path / "run", recipe, toy_plugins, torch.device("cpu"), []) as run:
        train(run)
        run.restore_for_evaluation()
        assert run.experiment.learner.adapter.now == 1.0


def test_a_sweep_runs_cells_without_steps(toy_recipe: Path, toy_plugins: Loaded):
    from fsl_core.config.matrix import read_matrix
    from fsl_core.sweeping.plan import plan_sweep

    matrix = read_matrix(toy_recipe, toy_plugins.catalogue, ["matrix={outer.steps: [0, 3]}"])
    assert [cell.recipe.sections.outer.steps for cell in plan_sweep(matrix).cells] == [0, 3]

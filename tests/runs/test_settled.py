"""What an adapter says of its present weights: whether they may be the best, and numbers beside the
score."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.cli.runs import _print_result
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import PluginError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs import checkpoints
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.run import Run
from fsl_core.training.judging import judge, state_of
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
WARMING = '''
class Warming(fsl.Adapter):
    """Right in its warm-up and wrong after it, so that scores alone would choose the warm-up."""

    name = "warming"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module, until: float = 0.5):
        super().__init__()
        self.n_way, self.until, self.now = task.n_way, until, 0.0
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def on_progress(self, progress):
        self.now = progress

    @property
    def settled(self):
        return self.now >= self.until

    def describe(self):
        return {"warm": float(not self.settled), "told": self.now}

    def adapt(self, backbone, support):
        members = fsl.one_hot(support.y, self.n_way).to(support.x)
        means = (members / members.sum(0)).T @ support.x
        sign = 1.0 if self.settled else -1.0
        used = 0 * self.unused + 0 * sum(p.sum() for p in backbone.parameters())
        return lambda x: used + sign * (x[:, None] - means).square().sum(-1)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Warming)
'''
HOOK = "@fsl.hookimpl\ndef fsl_register_adapters"


@pytest.fixture
def loaded(toy_recipe: Path) -> Loaded:
    """The toy plugin with one adapter more; twelve steps, validated after 5, 10 and 12."""
    plugin = toy_recipe.parent / "fslplugin.py"
    plugin.write_text(plugin.read_text().split(HOOK)[0] + WARMING)
    return load(entry_points=False, files=[plugin])


def run_warming(recipe: Path, loaded: Loaded, out: Path, until: float) -> Run:
    overrides = [f"adapter={{name: warming, until: {until}}}"]
    plugins = [recipe.parent / "fslplugin.py"]
    read = read_recipe(recipe, loaded.catalogue, overrides)
    with new_run(out, read, loaded, CPU, plugins) as run:
        train(run)
        judge(run)
        return run


def validations(run: Run) -> dict[int, float]:
    records = [record for record in run.records.metrics() if record.get("split") == "validation"]
    return {record["step"]: record["accuracy"] for record in records}


def test_the_best_checkpoint_is_never_from_inside_a_warm_up(toy_recipe, loaded, tmp_path):
    """Step 5 was told 4/12 and scores highest; steps 10 and 12 were told 9/12 and 11/12."""
    run = run_warming(toy_recipe, loaded, tmp_path / "run", until=0.5)
    scores = validations(run)
    assert list(scores) == [5, 10, 12]  # recorded, whether or not they may be the best
    assert scores[5] > max(scores[10], scores[12])
    assert run.records.result()["checkpoint"] == "best"
    assert run.records.result()["checkpoint_step"] in (10, 12)
    assert "settled" not in run.records.result()


@pytest.mark.parametrize(("until", "step"), [(9 / 12, 10), (9.01 / 12, 12), (11 / 12, 12)])
def test_what_counts_is_what_the_last_step_was_told(toy_recipe, loaded, tmp_path, until, step):
    """Step 10 of 12 was told 9/12: settled at exactly that, and not beyond."""
    run = run_warming(toy_recipe, loaded, tmp_path / "run", until)
    assert run.records.result()["checkpoint_step"] == step
    assert run.records.result()["adapter_state"] == {"warm": 0.0, "told": (step - 1) / 12}


def test_a_run_that_never_settles_is_judged_by_its_last_checkpoint(toy_recipe, loaded, tmp_path):
    run = run_warming(toy_recipe, loaded, tmp_path / "run", until=1.0)
    result = run.records.result()
    assert not run.records.path("best").exists()
    assert (result["checkpoint"], result["checkpoint_step"]) == ("last", 12)
    assert result["settled"] is False
    assert result["adapter_state"] == {"warm": 1.0, "told": 11 / 12}


def test_validation_and_checkpoint_are_told_the_same(toy_recipe, loaded, tmp_path):
    """A validation of training and an evaluation of the checkpoint it wrote see one progress."""
    run = run_warming(toy_recipe, loaded, tmp_path / "run", until=9.5 / 12)
    assert checkpoints.progress_of(run.records.path("best"))["step"] == 12
    with open_run(tmp_path / "run", CPU, write=False) as opened:
        for which, told in (("best", 11 / 12), ("last", 11 / 12)):
            opened.restore_for_evaluation(which)
            assert opened.experiment.learner.adapter.now == told


def test_the_command_line_says_both(capsys, toy_recipe, loaded, tmp_path):
    run = run_warming(toy_recipe, loaded, tmp_path / "run", until=1.0)
    _print_result(run.records.result(), tmp_path / "run", as_json=False)
    shown = capsys.readouterr().out
    assert "adapter: warm 1, told 0.916667\n" in shown
    assert "not settled: the judged weights are from inside the adapter's warm-up\n" in shown


def test_an_adapter_that_says_nothing_leaves_the_result_as_it_was(
    toy_recipe, toy_plugins, tmp_path
):
    read = read_recipe(toy_recipe, toy_plugins.catalogue, [])
    with new_run(
        tmp_path / "run", read, toy_plugins, CPU, [toy_recipe.parent / "fslplugin.py"]
    ) as run:
        train(run)
        judge(run)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert not {"adapter_state", "settled"} & set(result)
    assert state_of(NearestCentroid(run.experiment.source.task)) == {}


@pytest.mark.parametrize(
    ("settled", "state", "message"),
    [
        (1, {}, r"settled: 1\. True or False"),
        (True, [0.5], r"describe\(\) gave \[0\.5\]\. Finite numbers by name"),
        (True, {"p": nan}, r"describe\(\) gave 'p': nan\. A finite number"),
        (True, {"p": "half"}, r"describe\(\) gave 'p': 'half'\. A finite number"),
        (True, {"p": torch.ones(())}, r"describe\(\) gave 'p': tensor\(1\.\)\. A finite number"),
        (True, {1: 0.5}, r"describe\(\) gave 1: 0\.5\. A finite number"),
    ],
)
def test_what_is_no_number_is_refused_by_name(settled, state, message):
    class Odd(fsl.Adapter):
        name = "odd"

        @property
        def settled(self):
            return settled

        def describe(self):
            return state

    with pytest.raises(PluginError, match=f"^adapter 'odd': {message}$"):
        state_of(Odd())


def test_it_is_refused_before_training(toy_recipe, loaded, tmp_path, monkeypatch):
    adapter = loaded.catalogue.get("adapter", "warming").factory
    monkeypatch.setattr(adapter, "describe", lambda self: {"told": None})
    with pytest.raises(PluginError, match=r"adapter 'warming': describe\(\) gave 'told': None"):
        run_warming(toy_recipe, loaded, tmp_path / "run", until=0.5)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

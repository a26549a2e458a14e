"""Recipes with these estimates: refusals, notes, metrics, and a run that is interrupted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fsl_core as fsl
from fsl_core.cli import app

RECIPE = """
seed: 0
episodes: {name: sinusoid, n_shot: 5, n_query: 5, tasks: 6}
backbone: {name: mlp, hidden: [6, 6]}
adapter: {name: maml, inner_steps: 2, inner_lr: 0.01, proximal: 1.0}
outer:
  hypergradient: {name: implicit, iterations: 2}
  weighting: {name: uniform}
  meta_batch_size: 3
  steps: 6
  validate_every: 0
  checkpoint_every: 2
evaluate: {episodes: 2}
execution: {mode: loop}
"""
STOP = """
import os

import fsl_core as fsl


@fsl.hookimpl
def fsl_step_finished(run, step, metrics):
    if os.environ.get("STOP_AT") == str(step):
        os._exit(7)
"""
KEEPING = [
    "{name: implicit, iterations: 2, warm_start: true, count_negative_curvature: true}",
    "{name: reptile, adam_lr: 0.01, inner_state: carry, inner_batch: 4}",
    "{name: gaussian-smoothing, redraw: per-step, directions: 2}",
]
"""Estimates that differ from step to step."""


@pytest.fixture(autouse=True)
def _float64() -> None:
    """In place of the fixture with this name: runs are in float32."""


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "fslplugin.py").write_text(STOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "maml,hypergradients")


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["adapter.proximal=0"], "implicit.*the inner loss has no curvature of its own"),
        (
            ["outer.hypergradient={name: truncated, steps: 3}"],
            "truncated: steps: 3, and there are 2",
        ),
        (
            ["outer.hypergradient={name: reptile}", "adapter.learn_inner_lr=scalar"],
            "reptile.*inner_lr.rate is trained and no inner step moves it",
        ),
        (["adapter.multi_step_loss=0.5"], "implicit: multi_step_loss follows the query loss after"),
        (["adapter.order=1"], "implicit: order: 1 is an estimate of its own"),
    ],
    ids=str,
)
def test_refused_before_anything_runs(options, message):
    chosen = [word for option in options for word in ("-s", option)]
    refused = command("check", "recipe.yaml", *chosen)
    assert isinstance(refused.exception, fsl.FslError)
    assert re.search(message, str(refused.exception), re.DOTALL), refused.exception


def test_metrics_and_notes_of_a_run(tmp_path):
    estimate = "outer.hypergradient={name: implicit, count_negative_curvature: true}"
    assert command("run", "recipe.yaml", "-s", estimate, "--out", "counted").exit_code == 0
    lines = (tmp_path / "counted" / "metrics.jsonl").read_text().splitlines()
    counts = [json.loads(line)["negative_curvature"] for line in lines]
    assert len(counts) == 6
    assert all(count in (0, 1, 2, 3) for count in counts)  # one for each task at most
    result = json.loads((tmp_path / "counted" / "result.json").read_text())
    assert result["hypergradient"] == "implicit"
    told = command("run", "recipe.yaml", "-s", "outer.hypergradient={name: reptile}", "--out", "r")
    assert "this recipe has adam and constant" in " ".join(told.output.split())


@pytest.mark.slow
@pytest.mark.parametrize("estimate", KEEPING)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, estimate):
    chosen = ("-s", f"outer.hypergradient={estimate}")
    whole = command("run", "recipe.yaml", *chosen, "--out", "whole")
    assert whole.exit_code == 0, whole.output
    stopped = [sys.executable, "-m", "fsl_core", "run", "recipe.yaml", *chosen, "--out", "parts"]
    environment = {**os.environ, "STOP_AT": "5"}
    ended = subprocess.run(stopped, env=environment, capture_output=True, check=False)
    assert ended.returncode == 7, ended.stderr
    resumed = command("resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    for file in ("checkpoints/last.safetensors", "episodes.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()

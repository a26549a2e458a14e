"""Recipes with these estimates: refusals, notes, metrics, and a run that is interrupted."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch.nn import functional as F
from typer.testing import CliRunner

import fsl_core as fsl
from fsl_core.assembly.experiment import build_experiment
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
        raise GeneratorExit  # nothing handles it, so the run ends as if its process had died
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


def loss_at(like: list[torch.Tensor], items: fsl.LabelledSet, flat: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the recipe's network, written out: weights and biases in turn."""
    h, parts = items.x.double(), flat.split([weight.numel() for weight in like])
    shaped = [part.view_as(weight) for part, weight in zip(parts, like, strict=True)]
    for k in range(0, len(shaped), 2):
        h = F.linear(h if k == 0 else h.relu(), shaped[k], shaped[k + 1])
    return (h - items.y.double()).square().mean()


def meets_negative_curvature(weights: list[torch.Tensor], episode: fsl.Episode) -> bool:
    """Whether A = I + H / proximal is indefinite where three iterations of cg look.

    That is on span{r, A r, A A r}: cg meets a direction p with p'A p <= 0 there, or there is none.
    """
    support, query = (
        partial(loss_at, weights, items) for items in (episode.support, episode.query)
    )
    phi = theta = torch.cat([weight.flatten() for weight in weights])
    for _ in range(2):  # of inner_lr 0.01, with the penalty of weight 1
        phi = phi - 0.01 * (torch.func.grad(support)(phi) + phi - theta)
    system = torch.eye(len(phi), dtype=phi.dtype) + torch.func.jacrev(torch.func.grad(support))(phi)
    b = torch.func.grad(query)(phi)
    residual = b - system @ b  # cg begins at b
    powers = [residual, system @ residual, system @ system @ residual]
    basis = torch.linalg.qr(torch.stack(powers, 1)).Q
    return bool(torch.linalg.eigvalsh(basis.T @ system @ basis)[0] <= 0)


def test_negative_curvature_is_counted_as_dense_hessians_have_it(tmp_path):
    """At weights that stand still: SGD of 1e-30."""
    keys = {
        "outer.hypergradient": "{name: implicit, iterations: 3, count_negative_curvature: true}",
        "outer.optimizer": "{name: sgd, lr: 1.0e-30}",
    }
    chosen = [word for key, value in keys.items() for word in ("-s", f"{key}={value}")]
    assert command("run", "recipe.yaml", *chosen, "--out", "counted").exit_code == 0
    lines = (tmp_path / "counted" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["negative_curvature"] for line in lines]

    experiment = build_experiment(fsl.load_recipe("recipe.yaml"))
    weights = [p.detach().double() for p in experiment.learner.parameters()]
    batches = [experiment.source.batch("train", range(3 * k, 3 * k + 3), 0) for k in range(6)]
    expected = [
        sum(meets_negative_curvature(weights, episode) for episode in batch.unbatch())
        for batch in batches
    ]
    assert found == expected
    assert len(set(expected)) > 1


def test_notes_of_a_run(tmp_path):
    changed = {"outer.hypergradient": {"name": "reptile"}, "outer.steps": 1}
    run = fsl.run("recipe.yaml", changed, out="noted", progress=False)
    assert any("this recipe has adam and constant" in note for note in run.notes)
    result = json.loads((tmp_path / "noted" / "result.json").read_text())
    assert result["hypergradient"] == "reptile"


@pytest.mark.parametrize("estimate", KEEPING)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch, estimate):
    chosen = ("-s", f"outer.hypergradient={estimate}")
    whole = command("run", "recipe.yaml", *chosen, "--out", "whole")
    assert whole.exit_code == 0, whole.output
    monkeypatch.setenv("STOP_AT", "5")
    with pytest.raises(GeneratorExit):
        command("run", "recipe.yaml", *chosen, "--out", "parts")
    assert not (tmp_path / "parts" / "result.json").exists()
    monkeypatch.delenv("STOP_AT")
    resumed = command("resume", "parts")
    assert resumed.exit_code == 0, resumed.output
    for file in ("checkpoints/last.safetensors", "episodes.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()

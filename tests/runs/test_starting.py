"""A run may start from the weights of another: which, from where, and what did not fit is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fsl_core as fsl
from tests.parts.command_line import Call

WITH_HEAD = ("-s", "adapter=explodes", "-s", "adapter.at_progress=2")


@pytest.fixture
def first(call: Call, toy_recipe: Path, tmp_path: Path) -> Path:
    ended = call("run", toy_recipe, "--out", "first")
    assert ended.code == 0, ended.err
    return tmp_path / "first"


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{which}.safetensors")


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_weights_are_those_of_the_other_run(
    call: Call, first: Path, toy_recipe: Path, tmp_path: Path, which: str
):
    start = ("-s", f"start_from={{run: first, checkpoint: {which}}}")
    ended = call("run", toy_recipe, "--out", "second", *start, "-s", "outer.steps=0")
    assert ended.code == 0, ended.err
    theirs, ours = weights(first, which), weights(tmp_path / "second")
    assert {k for k in ours if k.startswith("learner.")} <= set(theirs)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    started = result_of(tmp_path / "second")["start_from"]
    assert (started["run"], started["checkpoint"]) == (str(first), which)
    assert json.loads((tmp_path / "second" / "start.json").read_text()) == started
    assert f"starts from {started['weights']} weights of {first} ({which} of step" in ended.out
    if which == result_of(first)["checkpoint"]:
        assert result_of(tmp_path / "second")["accuracy"] == result_of(first)["accuracy"]


def test_a_name_alone_is_the_best_of_the_run(call: Call, first: Path, toy_recipe: Path):
    result = fsl.run(
        toy_recipe,
        {"start_from": "first", "outer.steps": 0},
        plugins=[toy_recipe.parent / "fslplugin.py"],
        progress=False,
    )
    assert result.result["start_from"]["checkpoint"] == "best"
    own = result.learner.state_dict()
    theirs = weights(first, "best")
    assert all(torch.equal(theirs[f"learner.{name}"], tensor) for name, tensor in own.items())
    assert any("starts from" in note for note in result.notes)


def test_training_goes_on_from_there(call: Call, first: Path, toy_recipe: Path, tmp_path: Path):
    """One step from other weights gives other weights, and the data are those of this run."""
    call("run", toy_recipe, "--out", "on", "-s", "start_from=first", "-s", "outer.steps=1")
    call("run", toy_recipe, "--out", "fresh", "-s", "outer.steps=1")
    on, fresh, before = (weights(r) for r in (tmp_path / "on", tmp_path / "fresh", first))
    name = next(name for name in on if name.startswith("learner.backbone"))
    best = weights(first, "best")
    assert not torch.equal(on[name], fresh[name])
    assert (on[name] - best[name]).abs().max() < 0.02  # a step of Adam at 0.01
    assert (fresh[name] - best[name]).abs().max() > 0.02
    assert before.keys() == on.keys()


def test_what_is_left_and_what_is_new_is_said(
    call: Call, first: Path, toy_recipe: Path, tmp_path: Path
):
    ended = call("run", toy_recipe, "--out", "head", "-s", "start_from=first", *WITH_HEAD)
    assert ended.code == 0, ended.err
    started = result_of(tmp_path / "head")["start_from"]
    assert started["new"] == ["adapter.head.weight", "adapter.head.bias"]
    assert "; new here: adapter.head.weight, adapter.head.bias" in ended.err
    ended = call("run", toy_recipe, "--out", "back", "-s", "start_from=head")
    assert "; left there: adapter.head.bias, adapter.head.weight" in ended.err
    assert result_of(tmp_path / "back")["start_from"]["left"] == started["new"][::-1]


def test_the_backbone_alone(call: Call, first: Path, toy_recipe: Path, tmp_path: Path):
    call("run", toy_recipe, "--out", "head", *WITH_HEAD)
    start = ("-s", "start_from={run: head, part: backbone}", "-s", "outer.steps=0")
    call("run", toy_recipe, "--out", "second", *start, *WITH_HEAD)
    theirs, ours = weights(tmp_path / "head", "best"), weights(tmp_path / "second")
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor) == name.startswith("learner.backbone."), name


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            ("start_from=head", "episodes.n_way=4"),
            "start_from: head: adapter.head.weight is (3, 8), and (4, 8) here. The options that it was "
            "trained with, or `part: backbone`, which leaves the adapter's weights out",
        ),
        (
            ("start_from=head", "backbone.hidden=[9]"),
            "start_from: head: backbone.layers.0.0.weight is (8, 2), and (9, 2) here. The options that it "
            "was trained with",
        ),
        (
            ("start_from=nowhere",),
            "start_from: nowhere: no run here (recipe.yaml is absent). A run's directory",
        ),
        (
            ("start_from={run: unvalidated, checkpoint: best}",),
            "start_from: unvalidated: no checkpoint 'best'. A run that has been trained",
        ),
        (("start_from=3",), "start_from: found 3. Expected an object"),
        (
            ("start_from={rnu: first}",),
            "start_from: start_from.rnu: section 'start_from' has no such option. Did you mean "
            "'run'?",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    call: Call, toy_recipe: Path, options: tuple[str, ...], fault: str, tmp_path: Path
):
    call("run", toy_recipe, "--out", "head", *WITH_HEAD)
    call("run", toy_recipe, "--out", "unvalidated", "-s", "outer.validate_every=0")
    given = [word for option in options for word in ("-s", option)]
    for command in (("check",), ("run", "--out", "second")):
        refused = call(*command, toy_recipe, *WITH_HEAD, *given)
        assert refused.code == 2
        lines = [line for line in refused.err.splitlines() if not line.startswith("imported")]
        assert any(line.endswith(fault) for line in lines), lines
        assert "Traceback" not in refused.err
    assert not (tmp_path / "second").exists()


def test_weights_that_are_not_finite_are_refused(call: Call, first: Path, toy_recipe: Path):
    path = first / "checkpoints" / "best.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = weights(first, "best")
    name = next(name for name in tensors if name.startswith("learner.backbone"))
    tensors[name][0] = float("nan")
    save_file(tensors, path, metadata=metadata)
    refused = call("check", toy_recipe, "-s", "start_from=first")
    assert refused.err.endswith(
        f"first: {name.removeprefix('learner.')} is not finite. A run with finite weights\n"
    )


def test_a_run_that_died_at_once_starts_from_the_same_weights(
    call: Call, first: Path, toy_recipe: Path, tmp_path: Path
):
    call("run", toy_recipe, "--out", "whole", "-s", "start_from=first")
    call("run", toy_recipe, "--out", "cut", "-s", "start_from=first")
    for name in ("result.json", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        (tmp_path / "cut" / name).unlink()
    assert call("resume", "cut").code == 0
    whole, cut = (weights(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_resume_needs_the_other_run_only_before_its_first_checkpoint(
    call: Call, first: Path, toy_recipe: Path, tmp_path: Path
):
    call("run", toy_recipe, "--out", "second", "-s", "start_from=first")
    started = result_of(tmp_path / "second")["start_from"]
    call("run", toy_recipe, "--out", "other", "-s", "seed=3")
    first.rename(tmp_path / "away")
    (tmp_path / "other").rename(first)
    (tmp_path / "second" / "result.json").unlink()
    assert call("resume", "second").code == 0
    assert result_of(tmp_path / "second")["start_from"] == started
    for name in ("result.json", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        (tmp_path / "second" / name).unlink()
    refused = call("resume", "second")
    assert refused.code == 2
    assert refused.err.endswith(
        f"second: the weights of {first} changed since this run began. That run as it was, or a "
        "new run\n"
    )

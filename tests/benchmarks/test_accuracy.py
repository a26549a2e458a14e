"""Time to an accuracy: learn2learn's loop takes the very steps of `fsl run`, which stops in time."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import fsl_core as fsl
from benchmarks import accuracy
from benchmarks.peers import peer
from benchmarks.race import LeftOut

SMALL = [
    "backbone.channels=4",
    "outer.steps=4",
    "outer.validate_every=2",
    "outer.validate_episodes=2",
    "evaluate.episodes=2",
    "execution.mode=loop",
    "execution.workers=1",
]


@pytest.fixture
def race(root: Path) -> dict:
    try:
        peer("learn2learn")
        fsl.load_recipe("glyphs/5w1s-maml")
    except (LeftOut, fsl.FslError) as reason:
        pytest.skip(str(reason))
    recipe = str(root / "recipes" / "glyphs" / "5w1s-maml.yaml")
    return {"recipe": recipe, "overrides": SMALL, "accuracy": 2.0, "threads": 1, "limit": 60}


def test_the_loop_of_learn2learn_ends_with_the_weights_of_a_run(
    race: dict, monkeypatch: pytest.MonkeyPatch
):
    judged = []

    def judge(parts, wanted: float) -> dict:
        judged.append({n: p.detach().clone() for n, p in parts.learner.named_parameters()})
        return {"accuracy": 0.0, "reached": False}

    monkeypatch.setattr(accuracy, "_judged", judge)
    found = accuracy.train_peer(race)
    assert (found["steps"], len(judged)) == (4, 2)
    own = fsl.run(race["recipe"], race["overrides"], progress=False)
    assert judged[-1].keys() == dict(own.learner.named_parameters()).keys()
    for name, ours in own.learner.named_parameters():
        # The norm cancels these biases: ours get no gradient, theirs get its rounding, which Adam
        # makes as long as any other step.
        if not name.endswith("conv.bias"):
            torch.testing.assert_close(judged[-1][name], ours, rtol=1e-3, atol=1e-4)


def test_it_stops_at_the_accuracy_and_at_the_limit(race: dict):
    assert accuracy.train_peer({**race, "accuracy": 0.0})["steps"] == 2
    found = accuracy.train_peer({**race, "limit": 0.0})
    assert (found["steps"], found["reached"]) == (2, False)


def test_a_run_stops_at_the_accuracy_and_says_if_it_does_not_get_there(race: dict):
    own = accuracy._our_run({**race, "accuracy": 0.0})
    assert (own["steps"], own["reached"]) == (2, True)
    assert own["seconds"] > 0
    assert own["episode_set"] == accuracy.train_peer({**race, "accuracy": 0.0})["episode_set"]
    with pytest.raises(LeftOut, match=r"ours ended with 0\.\d+ after 4 steps"):
        accuracy._our_run(race)


def test_what_stops_the_measuring_before_a_race_is_said(monkeypatch: pytest.MonkeyPatch):
    ended = CompletedProcess([], 1, "", "measuring\nepisodes 'omniglot': no zip file\n")
    monkeypatch.setattr(accuracy, "_fsl", lambda *_: ended)
    with pytest.raises(LeftOut, match=r"^fsl tune-execution: episodes 'omniglot': no zip file$"):
        accuracy._tuned({})


def test_a_loop_that_did_not_get_there_gives_a_bound():
    ours, theirs = {"seconds": 2.0, "reached": True}, {"seconds": 9.0, "reached": False}
    found = accuracy._compared(ours, theirs)
    assert found["ratios"]["learn2learn"] == [4.5, 4.5, 4.5]
    assert found["at_least"]

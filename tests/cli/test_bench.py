"""`fsl bench` and `fsl leaderboard`: versioned tasks, their episodes held by a hash, paired tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fsl_core.config.benchmarks import find_benchmark, read_benchmark
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import load
from tests.parts.command_line import Call, interrupt_at

TASK = """\
benchmark: blobs
version: 3
episodes: {name: blobs, n_way: 3, n_shot: 1, n_query: 5, spread: 1.5}
evaluate: {episodes: 20}
episode_set: "HASH"
"""
PLUGIN = """

@fsl.hookimpl
def fsl_register_benchmarks(register):
    from pathlib import Path

    register(lambda: Path(__file__).parent / "blobs.yaml", "blobs")
"""


@pytest.fixture
def task(toy_recipe: Path, in_process: Call) -> Path:
    """A task that the toy plugin offers, with the hash that its episodes have."""
    plugin = toy_recipe.parent / "fslplugin.py"
    plugin.write_text(plugin.read_text() + PLUGIN)
    file = toy_recipe.parent / "blobs.yaml"
    file.write_text(TASK.replace("HASH", "0" * 32))
    assert in_process("run", "toy.yaml", "--out", "a").code == 0
    refused = bench(in_process, "a")
    assert refused.code == 2
    assert f"blobs, version 3: its episode set is {'0' * 32}, and here it is " in refused.err
    file.write_text(TASK.replace("HASH", refused.err.split("here it is ")[1][:32]))
    return file


def bench(call: Call, run: str, *more: str):
    return call("bench", "blobs", run, "--plugins-dir", ".", *more)


def run_of(call: Call, name: str, *settings: str) -> None:
    changes = [word for setting in settings for word in ("-s", setting)]
    assert call("run", "toy.yaml", "--out", name, *changes).code == 0


@pytest.fixture
def results(task: Path, in_process: Call) -> Path:
    """Two seeds of one method, and one of another."""
    run_of(in_process, "b", "seed=1")
    run_of(in_process, "c", "backbone.hidden=[2]", "outer.steps=1")
    for name in "abc":
        told = bench(in_process, name)
        assert "blobs, version 3: accuracy 0." in told.out
        assert f"result: results/blobs-{name}.json" in told.out
    return task.parent / "results"


def test_a_leaderboard_pairs_methods(results: Path, in_process: Call):
    done = in_process("leaderboard", "results", "--json")
    (board,) = json.loads(done.out)["boards"]
    assert board["benchmark"] == "blobs, version 3"
    found = {method["name"]: method for method in board["methods"]}
    assert {name: method["seeds"] for name, method in found.items()} == {
        "a": ["0", "1"],
        "c": ["0"],
    }
    read = {n: json.loads((results / f"blobs-{n}.json").read_text()) for n in "abc"}
    assert read["a"]["environment"]["processor"]
    assert str(results.parent) not in (results / "blobs-a.json").read_text()
    # one seed is shared, so the test is over episodes, of that seed
    a, c = (np.array(read[name]["scores"]) for name in "ac")
    (pair,) = board["pairs"]
    sign = 1 if board["methods"][0]["name"] == "a" else -1
    assert pair["difference"] == pytest.approx(sign * (a - c).mean())
    assert pair["p_holm"] == pytest.approx(stats.ttest_rel(a, c).pvalue)
    page = (results.parent / "leaderboard.html").read_text()
    assert "Who beats whom" in page
    assert read["a"]["episode_set"] in page
    assert "blobs, version 3, episode set" in in_process("leaderboard", "results").out


def test_mixed_versions_and_episodes_are_refused(results: Path, in_process: Call):
    file = results / "blobs-c.json"
    whole = json.loads(file.read_text())
    for key, value in (("version", 2), ("episode_set", "1" * 32)):
        file.write_text(json.dumps({**whole, key: value}))
        refused = in_process("leaderboard", "results")
        assert refused.code == 2
        assert f"blobs with {key} {value}, but results/blobs-a.json has " in refused.err
        assert "Results of one version alone" in refused.err
    file.write_text(json.dumps({**whole, "accuracy": 0.99}))
    assert "whose mean is not its accuracy" in in_process("leaderboard", "results").err
    file.write_text((results / "blobs-a.json").read_text())
    assert "Each run once" in in_process("leaderboard", "results").err


def test_a_recipe_is_trained_first(task: Path, in_process: Call):
    done = bench(in_process, "toy.yaml", "-s", "outer.steps=2")
    assert done.code == 0, done.err
    assert json.loads(Path("results/blobs-toy.json").read_text())["steps"] == 2
    refused = bench(in_process, "a", "-s", "outer.steps=2")
    assert refused.code == 2
    assert (
        "-s outer.steps=2: neither a run nor a task is changed. One of episodes.root" in refused.err
    )


def test_tasks_that_come_with_core():
    catalogue = load(entry_points=False).catalogue
    names = {component.name for component in catalogue.components("benchmark")}
    assert names >= {"omniglot-5w1s", "omniglot-20w1s", "cifar-fs-5w1s", "cifar-fs-5w5s"}
    for name in names:
        found = find_benchmark(name, catalogue)
        assert (found.name, found.version, found.episodes) == (name, 1, 600)


def test_a_file_that_is_no_task(tmp_path: Path):
    file = tmp_path / "task.yaml"
    file.write_text(TASK.replace("HASH", "z"))
    with pytest.raises(RecipeError, match=r"task\.yaml:5: episode_set: string should match"):
        read_benchmark(file)
    file.write_text(TASK.replace("HASH", "0" * 32) + "wrong: 1\n")
    with pytest.raises(RecipeError, match=r"wrong: extra inputs.*Keys of a task: benchmark, ver"):
        read_benchmark(file)


@pytest.mark.usefixtures("task")
def test_an_interruption_after_training_does_not_ask_for_another(
    in_process: Call, monkeypatch: pytest.MonkeyPatch
):
    interrupt_at(monkeypatch, "fsl_core.training.benchmarking.evaluate")
    ended = bench(in_process, "toy.yaml")
    told = "interrupted at evaluating episodes, 0 of 20. `fsl bench blobs runs/toy` judges it"
    assert (ended.code, ended.err.splitlines()[-1]) == (130, told)

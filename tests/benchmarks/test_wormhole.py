"""The comparison of benchmarks/wormhole.py: its statistics, and the script itself with two outer
steps a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "wormhole.py"
SHORT = ["-s", "outer.steps=2", "-s", "outer.meta_batch_size=2", "-s", "evaluate.episodes=5"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("wormhole_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_paired_differences(script):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 50))
    found = script.paired(list(first), list(second))
    for (mean, half), a, b in zip(found.by_seed, first, second, strict=True):
        assert mean == pytest.approx((a - b).mean())
        assert half == pytest.approx(1.96 * (a - b).std(ddof=1) / np.sqrt(50))
    interval = stats.ttest_rel(first.mean(1), second.mean(1)).confidence_interval(0.95)
    mean, half = found.seeds
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    mean, half = found.episodes
    assert mean == pytest.approx((first - second).mean())
    assert half == pytest.approx(1.96 * (first - second).mean(0).std(ddof=1) / np.sqrt(50))


def test_one_seed_has_no_interval_over_seeds(script):
    found = script.paired([np.array([1.0, 2.0])], [np.array([0.0, 1.5])])
    assert found.seeds[0] == 0.75
    assert np.isnan(found.seeds[1])
    assert "no interval from one seed" in script._interval(found.seeds)


def run(script, method, seed, episode_set="a", conflict=True):
    steps = np.arange(1.0, 101.0)
    loss = np.stack([steps, 1 / steps])
    curve = np.stack([steps[::10], np.full(10, 0.25 + seed)]) if conflict else np.zeros((2, 0))
    result = {
        "metric": "accuracy",
        "accuracy": 0.9,
        "episodes": 3,
        "episode_set": episode_set,
        "seed": seed,
    }
    scores = np.array([0.9, 0.8, 1.0]) + (method == "wormhole") * np.array([0.0, 0.1, 0.05])
    return script.Finished(
        result, scores, {"loss": loss, "gradient_cosine": curve, "gradient_conflict": curve}
    )


@pytest.mark.parametrize("conflict", [True, False])
def test_page_and_figure(script, tmp_path, conflict):
    runs = {m: [run(script, m, s, conflict=conflict) for s in (0, 1)] for m in script.METHODS}
    page = script.section("threshold", runs, "figure.svg")
    assert "| 1 | 0.9000 | 0.9000 | +0.0500 ± 0.0566 |" in page
    if conflict:
        assert "| mean pairwise cosine | 0.750 (0.250 .. 1.250) | 0.750 (0.250 .. 1.250) |" in page
    else:
        assert "was not measured" in page
    script.draw(runs, "Title", tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert ("negative pairs" in text) == conflict


def test_runs_on_other_episodes_are_refused(script):
    runs = {"wormhole": [run(script, "wormhole", 0, "b")], "maml": [run(script, "maml", 0)]}
    with pytest.raises(
        SystemExit,
        match=r"threshold: runs judged on 2 sets of episodes\. The same `evaluate:` in both recipes",
    ):
        script.section("threshold", runs, "figure.svg")


def test_another_recipe_or_setting_is_another_run(script, tmp_path):
    recipe = tmp_path / "threshold-maml.yaml"
    recipe.write_text("seed: 0\n")
    names = {
        script.run_name(recipe, *chosen) for chosen in ((0, []), (1, []), (0, ["outer.steps=2"]))
    }
    recipe.write_text("seed: 1\n")
    names.add(script.run_name(recipe, 0, []))
    assert len(names) == 4
    assert script.run_name(recipe, 0, []) in names


def test_a_run_that_fails_is_named(script, tmp_path):
    with pytest.raises(
        SystemExit, match=r"(?s)fsl_core run .*absent\.yaml.*exit status \d+\.\n.*absent\.yaml"
    ):
        script.run_recipe(tmp_path / "absent.yaml", 0, tmp_path / "run", [])


@pytest.mark.slow
def test_the_whole_script(script, tmp_path, monkeypatch):
    installed = {d.name for d in metadata.distributions()}
    if absent := {"fsl-wormhole", "fsl-maml"} - installed:
        pytest.skip(f"{', '.join(sorted(absent))} is not installed")
    folders = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    arguments = ["--seeds", "1", *folders, *SHORT, "--experiments", "threshold"]
    script.main(arguments)
    page = (tmp_path / "out" / "wormhole.md").read_text()
    assert page.count("| 0 | ") == 1
    results = sorted((tmp_path / "runs").glob("*/result.json"))
    assert len(results) == 2
    assert {json.loads(path.read_text())["episodes"] for path in results} == {5}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "wormhole.md",
        "wormhole-threshold.svg",
    }
    monkeypatch.setattr(
        script.subprocess, "run", lambda *_, **__: pytest.fail("a finished run was run again")
    )
    script.main(arguments)
    assert (tmp_path / "out" / "wormhole.md").read_text() == page

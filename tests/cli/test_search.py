"""`fsl search` as a user meets it: what it prints, writes and refuses, and killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEARCH = """
search:
  trials: 3
  batch: 2
  space: {outer.optimizer.lr: {low: 0.001, high: 0.1, log: true}}
  methods:
    euclidean: {adapter: {name: nearest-centroid}}
    cosine: {adapter: {name: nearest-centroid, distance: cosine}}
"""


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    toy_recipe.write_text(toy_recipe.read_text().replace("steps: 12", "steps: 6") + SEARCH)
    return toy_recipe


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        times = ("adaptation_seconds", "training_seconds")
        return [{k: v for k, v in row.items() if k not in times} for row in csv.DictReader(opened)]


def kill_when_a_trial_has_ended(recipe: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "fsl_core", "search", str(recipe), "--out", str(folder)]
    environment = {**os.environ, "FSL_LOAD_PLUGINS": "none"}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list(folder.glob("runs/*/validated.json")):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()


def test_a_search_chooses_by_validation_and_tests_the_best(call, recipe: Path, tmp_path: Path):
    """Killed at first, and then gone on with."""
    kill_when_a_trial_has_ended(recipe, tmp_path / "out")
    (kept,) = (tmp_path / "out").glob("runs/*/validated.json")
    written = kept.stat().st_mtime_ns
    ended = call("search", recipe, "--out", "out", "--jobs", "2")
    assert ended.code == 0, ended.err
    assert "1 trials are finished already and kept" in ended.err
    assert "euclidean, trial 2: validation accuracy 0." in ended.err
    assert kept.stat().st_mtime_ns == written
    assert (
        "3 trials of each method, of 6 steps each, proposed by random in batches of 2" in ended.out
    )
    assert "euclidean: 3 complete; 18 steps in all; best trial" in ended.out
    command = f"fsl reproduce out/best/cosine.yaml --plugins-dir {tmp_path}"
    assert f"cosine again: {command}" in ended.out

    rows = table(tmp_path / "out" / "trials.csv")
    assert [row["method"] for row in rows] == ["euclidean"] * 3 + ["cosine"] * 3
    for method in (rows[:3], rows[3:]):
        assert method[0]["best"] == "True"
        assert float(method[0]["score"]) == max(float(row["score"]) for row in method)
        assert len({row["outer.optimizer.lr"] for row in method}) == 3
    tested = {path.parent.name for path in (tmp_path / "out" / "runs").glob("*/episodes.csv")}
    assert tested == {rows[0]["run"], rows[3]["run"]}
    assert [row["method"] for row in table(tmp_path / "out" / "sweep.csv")] == [
        "euclidean",
        "cosine",
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Trials of cosine" in page
    assert page.count("<svg") >= 4
    assert command in page

    again = call("search", recipe, "--out", "out", "--json")
    assert "6 trials are finished already and kept" in again.err
    assert "trial 0: validation" not in again.err
    found = json.loads(again.out)
    assert [method["best"] for method in found["methods"]] == [
        int(row["trial"]) for row in (rows[0], rows[3])
    ]
    reproduced = call(
        "reproduce", "out/best/cosine.yaml", "--plugins-dir", tmp_path, "--out", "again"
    )
    assert reproduced.code == 0
    scores = [tmp_path / name / "episodes.csv" for name in ("again", f"out/runs/{rows[3]['run']}")]
    assert scores[0].read_bytes() == scores[1].read_bytes()
    waiting = call("resume", f"out/runs/{rows[2]['run']}")
    assert waiting.out.startswith("validation accuracy 0.")
    assert not (tmp_path / "out" / "runs" / rows[2]["run"] / "result.json").exists()
    status = call("sweep", "--status", "out")
    assert status.out.endswith("6 runs: 6 finished\n")


def test_other_commands_say_what_such_a_recipe_is(call, recipe: Path):
    checked = call("check", recipe)
    assert "3 trials of each method by random: euclidean over outer.optimizer.lr" in checked.out
    for command in ("run", "sweep"):
        refused = call(command, recipe)
        assert refused.code == 2
        assert f"search: a search of many runs. `fsl search {recipe}` runs them" in refused.err
    assert call("run", recipe, "-s", "search=null", "-s", "outer.steps=1").code == 0
    refused = call("check", recipe, "--data")
    assert "has a `search:`. `-s search=null` leaves it out" in refused.err
    listed = call("list", "searchers")
    assert "random" in listed.out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("search=null", "no `search:`, so there is nothing to search. search: {trials: 20"),
        ("search=3", "-s search: found 3. A mapping with a `space`"),
        ("matrix={seed: [0, 1]}", "-s matrix: a matrix of many runs beside a search. One of the"),
        ("expect={accuracy: {value: 1, tolerance: 1}}", "-s expect: figures of one run, and a se"),
        ("search.trials=0", "-s search.trials: found 0. Expected greater than 0"),
        ("search.trails=9", "section 'search' has no such option. Did you mean 'trials'?"),
        ("search.searcher=optun", "searcher 'optun': no installed plugin offers it."),
        ("search.searcher={name: random, sampler: tpe}", "searcher 'random' has no such option"),
        (
            "search.space={outer.optimizer.lR: [1, 2]}",
            "optimizer 'adam' has no such option. Did you",
        ),
        (
            "search.space={outer.optimizer.lr: {low: 0, high: 1}}",
            "outer.optimizer.lr: found 0. Exp",
        ),
        ("search.space={outer.optimizer.lr: {low: 2, high: 1}}", "from 2 to 1. low below high"),
        ("search.space={outer.optimizer.lr: {low: 0, high: 1, log: true}}", "low: 0, on a log sca"),
        ("search.space={outer.optimizer.lr: {low: a, high: 1}}", 'low: found "a". A number'),
        ("search.space={outer.optimizer.lr: {low: 0.1, high: 1, log: 3}}", "log: found 3. true or"),
        ("search.space={outer.optimizer.lr: {low: 0.1, high: 1, step: 2}}", "step: 2. A number ab"),
        ("search.space={outer.optimizer.lr: [0.1]}", "found [0.1]. A list of two values or more"),
        ("search.space={outer.optimizer.lr: [0.1, 0.1]}", "0.1 is there twice. Every value once"),
        ("search.space={outer..lr: [0.1, 0.2]}", "not a key path. Such as adapter.inner_lr"),
        ("search.space={outer: [1, 2]}", "outer.steps is the same for all that is compared."),
        ("search.methods={a: {outer.meta_batch_size: 4}}", "outer.meta_batch_size is the same for"),
        ("search.methods={a: {outer.optimizer.lr: 0.1}}", "outer.optimizer.lr is searched. One of"),
        (
            "search.methods={a: {space: {outer.optimizer.lr: [0.1, 0.2]}}}",
            "outer.optimizer.lr is searched for all methods. One place",
        ),
        ("search.methods={a: {space: 3}}", "search.methods.a.space: found 3. A mapping of key"),
        ("search.space=null", "nothing to search. A `space` of key paths with ranges or lists"),
    ],
)
def test_what_is_refused_is_one_line_with_its_place(call, recipe: Path, override: str, told: str):
    ended = call("search", recipe, "-s", override, "--out", "out")
    assert ended.code == 2
    assert told in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert not Path("out").exists()


def test_more_jobs_than_a_batch_holds_are_told(call, recipe: Path, monkeypatch):
    """Before anything runs; here nothing does."""
    monkeypatch.setattr("fsl_core.sweeping.start.run_jobs", lambda *arguments: None)
    ended = call("search", recipe, "--out", "out", "--jobs", "5")
    assert (
        "note: 5 jobs, and at most 4 trials at a time: search.batch 2 for each of 2 methods"
        in ended.err
    )
    assert ended.code == 1
    assert "euclidean: no trial finished; 0 steps in all; no trial has a score" in ended.out

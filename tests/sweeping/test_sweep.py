"""`fsl sweep` as a user meets it: killed and started again, with a failing run, refused, called by
the wrong command."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

MATRIX = "matrix: {adapter: [nearest-centroid, {name: explodes, at_progress: 2}], seed: [0, 1]}\n"
SLOW = "\n\n@fsl.hookimpl\ndef fsl_step_finished(step):\n    import time\n    time.sleep(0.1)\n"
TIMES = ("adaptation_seconds", "training_seconds")


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    toy_recipe.write_text(toy_recipe.read_text().replace("steps: 12", "steps: 24") + MATRIX)
    return toy_recipe


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "sweep.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in csv.DictReader(file)
        ]


def results(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (directory / "runs").glob("*/result.json")}


def begun(directory: Path) -> list[Path]:
    """Runs with a checkpoint and without a result."""
    checkpoints = directory.glob("runs/*/checkpoints/last.safetensors")
    return [path for path in checkpoints if not (path.parents[1] / "result.json").exists()]


def in_use(directory: Path) -> bool:
    try:
        with FileLock(directory / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def test_a_run_is_the_same_to_the_bit_in_a_process_of_its_own(fsl, recipe: Path, tmp_path: Path):
    """Two runs are forked one after the other; the second is done again by `fsl resume`."""
    matrix = "matrix={adapter: [nearest-centroid, {name: explodes, at_progress: 2}], seed: [0]}"
    paper = ("--latex", "tables/paper.tex", "--csv", "paper.csv")
    swept = fsl("sweep", recipe, "-s", "outer.steps=6", "-s", matrix, "--out", "out", *paper)
    assert swept.returncode == 0, swept.stderr
    assert re.search(
        r"explodes +nearest-centroid +[+-]0\.\d+ ± 0\.\d+ +\S+ +\d+, \d+, \d+", swept.stdout
    )
    tex = (tmp_path / "tables" / "paper.tex").read_text()
    assert tex.startswith("\\begin{tabular}{ll}\n\\toprule\nadapter & accuracy")
    assert (tmp_path / "paper.csv").read_text().startswith("adapter,accuracy,best\n")
    forked = next((tmp_path / "out" / "runs").glob("explodes-*"))
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (alone / name).write_bytes((forked / name).read_bytes())
    assert fsl("resume", alone).returncode == 0
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "episodes.csv"):
        assert (forked / name).read_bytes() == (alone / name).read_bytes(), name
    assert "test accuracy" in (forked / "output.txt").read_text()


@pytest.mark.slow
def test_two_sweeps_at_once_end_with_one_table(recipe: Path, tmp_path: Path):
    """Neither blames the other, both have every run, and no run is done twice."""
    matrix = "matrix={adapter: [nearest-centroid], seed: [0, 1, 2]}"
    command = [sys.executable, "-m", "fsl_core", "sweep", str(recipe), "-s", matrix, "--out", "out"]
    options = {"env": {**os.environ, "FSL_LOAD_PLUGINS": ""}, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    told = [sweep.communicate(timeout=600) for sweep in both]
    assert [sweep.returncode for sweep in both] == [0, 0], told
    assert "failed" not in "".join(error for _, error in told)
    assert [row["seeds"] for row in table(tmp_path / "out")] == ["0 1 2"]
    runs = list((tmp_path / "out" / "runs").glob("*-*"))
    assert len(runs) == 3
    for run in runs:
        steps = (run / "metrics.jsonl").read_text().splitlines()
        assert len(steps) == len(set(steps)) > 24


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_sweep_killed_in_the_middle_goes_on(
    call, recipe: Path, tmp_path: Path, ended_by: signal.Signals
):
    """What was finished is not run again, what was begun goes on, and the tables are those of a
    sweep never stopped."""
    if ended_by is signal.SIGKILL:
        plain = tmp_path / "plain"
        assert call("sweep", recipe, "--jobs", 2, "--out", plain).code == 0
    (tmp_path / "fslplugin.py").write_text((tmp_path / "fslplugin.py").read_text() + SLOW)

    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "fsl_core",
        "sweep",
        str(recipe),
        "--jobs",
        "1",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "FSL_LOAD_PLUGINS": "none"}
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (results(out) and begun(out)):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(ended_by)
    _, told = started.communicate(timeout=600)
    while any(in_use(path) for path in (out / "runs").glob("*-*")):
        time.sleep(0.02)  # a killed sweep takes its processes along
    kept = results(out)
    assert 1 <= len(kept) < 4
    if ended_by is not signal.SIGKILL:
        assert started.returncode == 128 + ended_by
        assert "interrupted. The same command goes on with what is not finished" in told
        assert not (out / "sweep.csv").exists()
        return  # going on is the same as after SIGKILL

    again = call("sweep", recipe, "--jobs", 2, "--out", out)
    assert again.code == 0, again.err
    assert "of 4 runs are finished already and kept" in again.err
    assert {path: time for path, time in results(out).items() if path in kept} == kept
    assert len(results(out)) == 4
    assert table(out) == table(plain)
    assert (out / "differences.csv").read_bytes() == (plain / "differences.csv").read_bytes()
    records = [
        len((run / "metrics.jsonl").read_text().splitlines()) for run in (out / "runs").glob("*-*")
    ]
    assert len(set(records)) == 1  # no step is there twice

    before = results(out)
    third = call("sweep", recipe, "--out", out)
    assert "4 of 4 runs are finished already and kept" in third.err
    assert results(out) == before
    assert table(out) == table(plain)


def test_a_failing_run_does_not_stop_the_others(call, recipe: Path, tmp_path: Path):
    recipe.write_text(
        recipe.read_text().replace("at_progress: 2", "at_progress: 0.5").replace("[0, 1]", "[0]")
    )
    ended = call("sweep", recipe, "-s", "outer.steps=6", "--out", "out")
    assert ended.code == 1
    assert "[2/2] explodes, seed 0: failed: outer step 4, episode 6: the loss is nan. " in ended.err
    assert "Traceback" not in ended.err
    fine, failed = table(tmp_path / "out")
    assert (fine["failed"], fine["rank"]) == ("0", "1.0")
    assert (failed["failed"], failed["accuracy"]) == ("1", "")
    assert failed["error"].startswith("outer step 4, episode 6: the loss is nan. ")
    assert "no run finished" in (tmp_path / "out" / "report.html").read_text()
    assert "1 failed" in ended.out

    again = json.loads(call("sweep", recipe, "-s", "outer.steps=6", "--out", "out", "--json").out)
    assert [row["failed"] for row in again["rows"]] == [0, 1]


def test_a_combination_that_is_not_legal_stops_all_of_it(call, recipe: Path, tmp_path: Path):
    recipe.write_text(
        recipe.read_text().replace("at_progress: 2}", "at_progress: 2}, {name: picky, even: 3}")
    )
    for command in ("sweep", "check"):
        ended = call(command, recipe)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.endswith(
            "adapter: even: 3. A multiple of two [picky, seed 0; and 1 more]\n"
        )
    assert not (tmp_path / "runs").exists()


def test_a_pair_that_does_not_fit_says_so_and_the_others_run(
    call, toy_recipe: Path, tmp_path: Path
):
    matrix = (
        "matrix: {adapter: [nearest-centroid, steps], outer.hypergradient: [unrolled, first-order]}"
    )
    toy_recipe.write_text(toy_recipe.read_text() + matrix + "\n")
    left_out = (
        "not run: nearest-centroid, first-order: adapter 'nearest-centroid' has no inner problem"
    )
    checked = call("check", toy_recipe)
    assert checked.code == 0
    assert checked.out == (
        f"{toy_recipe}: ok. 3 runs in 3 rows (2 adapter x 2 outer.hypergradient)\n{left_out}\n"
    )
    ended = call("sweep", toy_recipe, "-s", "outer.steps=2", "--out", "out")
    assert ended.code == 0, ended.err
    assert left_out in ended.out
    found = [(row["adapter"], row["hypergradient"]) for row in table(tmp_path / "out")]
    assert found == [
        ("nearest-centroid", "unrolled"),
        ("steps", "unrolled"),
        ("steps", "first-order"),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not run: nearest-centroid, first-order: adapter " in page
    assert "adapter by outer.hypergradient" in page


def test_other_commands_know_the_matrix(call, recipe: Path):
    assert call("check", recipe).out == f"{recipe}: ok. 4 runs in 2 rows (2 adapter x 2 seed)\n"
    ended = call("run", recipe)
    assert ended.code == 2
    assert (
        f"toy.yaml:14: matrix: a matrix of many runs. `fsl sweep {recipe}` runs them all, "
        in ended.err
    )

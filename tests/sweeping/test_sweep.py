"""`fsl sweep` as a user meets it: killed and started again, with a failing run, refused, called by the wrong command."""

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
from filelock import FileLock, Timeout

from fsl_core.config.matrix import read_matrix
from fsl_core.hooks.registry import Registry
from fsl_core.sweeping import schedule
from fsl_core.sweeping.schedule import last_step, threads_of

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


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_sweep_killed_in_the_middle_goes_on(
    fsl, recipe: Path, tmp_path: Path, ended_by: signal.Signals
):
    """What was finished is not run again, what was begun goes on, and the tables are those of a sweep never stopped."""
    if ended_by is signal.SIGKILL:
        plain = tmp_path / "plain"
        assert fsl("sweep", recipe, "--jobs", 2, "--out", plain).returncode == 0
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
    _, told = started.communicate(timeout=60)
    kept = results(out)
    assert 1 <= len(kept) < 4
    if ended_by is not signal.SIGKILL:
        assert started.returncode == 130
        assert "interrupted. The same command goes on with what is not finished" in told
        assert not any(in_use(path) for path in (out / "runs").iterdir())
        assert not (out / "sweep.csv").exists()
        return  # going on is the same as after SIGKILL

    again = fsl("sweep", recipe, "--jobs", 2, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "of 4 runs are finished already and kept" in again.stderr
    assert {path: time for path, time in results(out).items() if path in kept} == kept
    assert len(results(out)) == 4
    assert table(out) == table(plain)
    assert (out / "differences.csv").read_bytes() == (plain / "differences.csv").read_bytes()
    records = [
        len((run / "metrics.jsonl").read_text().splitlines()) for run in (out / "runs").iterdir()
    ]
    assert len(set(records)) == 1  # no step is there twice

    before = results(out)
    third = fsl("sweep", recipe, "--out", out)
    assert "4 of 4 runs are finished already and kept" in third.stderr
    assert results(out) == before
    assert table(out) == table(plain)


def test_a_failing_run_does_not_stop_the_others(fsl, recipe: Path, tmp_path: Path):
    recipe.write_text(
        recipe.read_text().replace("at_progress: 2", "at_progress: 0.5").replace("[0, 1]", "[0]")
    )
    ended = fsl("sweep", recipe, "-s", "outer.steps=6", "--out", "out")
    assert ended.returncode == 1
    assert (
        "[2/2] explodes, seed 0: failed: outer step 4, episode 6: the loss is nan. " in ended.stderr
    )
    assert "Traceback" not in ended.stderr
    fine, failed = table(tmp_path / "out")
    assert (fine["failed"], fine["rank"]) == ("0", "1.0")
    assert (failed["failed"], failed["accuracy"]) == ("1", "")
    assert failed["error"].startswith("outer step 4, episode 6: the loss is nan. ")
    assert "no run finished" in (tmp_path / "out" / "report.html").read_text()
    assert "1 failed" in ended.stdout

    again = json.loads(fsl("sweep", recipe, "-s", "outer.steps=6", "--out", "out", "--json").stdout)
    assert [row["failed"] for row in again["rows"]] == [0, 1]


def test_a_combination_that_is_not_legal_stops_all_of_it(fsl, recipe: Path, tmp_path: Path):
    recipe.write_text(
        recipe.read_text().replace("at_progress: 2}", "at_progress: 2}, {name: picky, even: 3}")
    )
    for command in ("sweep", "check"):
        ended = fsl(command, recipe)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.endswith(
            "adapter: even: 3. A multiple of two [picky, seed 0; and 1 more]\n"
        )
    assert not (tmp_path / "runs").exists()


def test_other_commands_know_the_matrix(fsl, recipe: Path):
    assert fsl("check", recipe).stdout == f"{recipe}: ok. 4 runs in 2 rows (2 adapter x 2 seed)\n"
    ended = fsl("run", recipe)
    assert ended.returncode == 2
    assert (
        f"toy.yaml:14: matrix: a matrix of many runs. `fsl sweep {recipe}` runs them all, "
        in ended.stderr
    )


def test_threads_are_shared_among_jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(schedule.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [threads_of(workers) for workers in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_of(2) == 5


def test_the_last_step_is_found_in_a_table_cut_short(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text(
        "".join(f'{{"step": {i}, "loss": 0.1}}\n' for i in range(500)) + '{"step": 500, "lo'
    )
    assert last_step(path) == 499


def test_a_run_that_another_process_writes_is_waited_for(
    recipe: Path, toy_registry: Registry, tmp_path: Path
):
    cell = read_matrix(recipe, toy_registry).cells[0]
    (job,) = schedule.make_jobs([cell], tmp_path)
    job.directory.mkdir()
    lock = FileLock(job.directory / ".lock")
    lock.acquire()
    states = []

    def look() -> None:
        states.append(job.state)
        if len(states) == 2:  # the other process finishes
            (job.directory / "result.json").write_text("{}")
            lock.release()

    schedule.run_jobs([job], 1, lambda _: pytest.fail("it was begun a second time"), on_change=look)
    assert states[:2] == ["elsewhere", "elsewhere"]
    assert job.state == "finished"

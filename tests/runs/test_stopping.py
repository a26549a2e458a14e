"""A run that is asked to stop loses nothing: resumed, it ends with the bits of one left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import Interrupted
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.checkpoints import progress_of
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.run import Run
from fsl_core.runs.stopping import Stop
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
RARELY = ("outer.checkpoint_every=100", "outer.schedule=cosine")


def run_whole(path: Path, loaded: Loaded, out: Path, *overrides: str) -> Run:
    recipe = read_recipe(path, loaded.catalogue, [*RARELY, *overrides])
    with new_run(out, recipe, loaded, CPU, [path.parent / "fslplugin.py"]) as run:
        train(run)
        judge(run)
        return run


def interrupt(path: Path, loaded: Loaded, out: Path, stop: Stop) -> Run:
    recipe = read_recipe(path, loaded.catalogue, RARELY)
    with new_run(out, recipe, loaded, CPU, [path.parent / "fslplugin.py"]) as run:
        run.stop = stop
        with pytest.raises(Interrupted):
            train(run)
        return run


def resume(out: Path) -> None:
    with open_run(out, CPU, write=True) as run:
        run.restore_last()
        train(run)
        judge(run)


def ended(out: Path) -> dict[str, object]:
    """What a run computed: all of its files but for times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    checkpoints = {file.name: file.read_bytes() for file in (out / "checkpoints").iterdir()}
    return {"metrics": records, "episodes": (out / "episodes.csv").read_text(), **checkpoints}


class AtStep:
    """Asks for a stop while this step is being finished."""

    def __init__(self, stop: Stop, step: int):
        self.stop, self.step = stop, step

    @fsl.hookimpl
    def fsl_step_finished(self, step: int) -> None:
        if step == self.step:
            self.stop.requested = True


@pytest.fixture
def whole(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> dict[str, object]:
    run_whole(toy_recipe, toy_plugins, tmp_path / "whole")
    return ended(tmp_path / "whole")


@pytest.mark.parametrize("step", [1, 5, 7, 12])
def test_the_step_is_finished_and_kept(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, whole: dict, step: int
):
    stop = Stop()
    toy_plugins.observers.add(AtStep(stop, step))
    run = interrupt(toy_recipe, toy_plugins, tmp_path / "run", stop)
    assert (run.step, run.kept_step(), stop.heeded) == (step, step, False)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    resume(tmp_path / "run")
    assert ended(tmp_path / "run") == whole


class AfterChecks(Stop):
    """Asks for a stop at a later look: the looks within an evaluation come after each episode."""

    looks = 0

    def check(self) -> None:
        self.looks += 1
        self.requested = self.looks == 2
        super().check()


def test_an_interrupted_validation_is_done_by_the_resume(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, whole: dict
):
    run = interrupt(toy_recipe, toy_plugins, tmp_path / "run", AfterChecks())
    assert (run.step, run.kept_step(), run.best) == (5, 5, None)
    path = run.records.path("last")
    assert progress_of(path) == {"step": 5, "best": None, "unvalidated": True}
    again = AfterChecks()
    with open_run(tmp_path / "run", CPU, write=True) as opened:  # and interrupted once more
        opened.restore_last()
        opened.stop = again
        with pytest.raises(Interrupted):
            train(opened)
    resume(tmp_path / "run")
    assert ended(tmp_path / "run") == whole


def test_a_request_after_the_last_look_is_heard(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    with (stop := Stop()).heeding():
        assert stop.heeded
    with pytest.raises(Interrupted), stop.heeding():
        stop.requested = True
    assert not stop.heeded


def test_checkpoints_by_time_change_no_bit(
    toy_recipe: Path,
    toy_plugins: Loaded,
    tmp_path: Path,
    whole: dict,
    monkeypatch: pytest.MonkeyPatch,
):
    saved = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda run, which: (saved.append(run.step), save(run, which)))
    run_whole(toy_recipe, toy_plugins, tmp_path / "often", "outer.checkpoint_seconds=1e-9")
    assert set(range(1, 13)) <= set(saved)
    assert ended(tmp_path / "often") == whole
    saved.clear()
    often = ("outer.checkpoint_seconds=null", "outer.validate_every=0")
    run_whole(toy_recipe, toy_plugins, tmp_path / "never", *often)
    assert saved == [12]


def test_a_minute_is_the_longest_time_by_default(toy_recipe: Path, toy_plugins: Loaded):
    assert read_recipe(toy_recipe, toy_plugins.catalogue).sections.outer.checkpoint_seconds == 60

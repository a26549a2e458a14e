"""What observers are told of a run that ends early, and of the sweep that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core import api
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.opening import new_run, open_run
from fsl_core.sweeping.jobs import make_jobs
from fsl_core.sweeping.prepare import prepare


class Watching:
    """Keeps what it is told, and raises at a step if it is to."""

    def __init__(self, error: BaseException | None = None):
        self.told: list[tuple] = []
        self.error = error

    @fsl.hookimpl
    def fsl_run_started(self):
        self.told.append(("started",))

    @fsl.hookimpl
    def fsl_step_finished(self, step):
        if self.error and step == 2:
            raise self.error

    @fsl.hookimpl
    def fsl_run_stopped(self, run, interrupted, reason):
        self.told.append(("stopped", run.step, interrupted, reason))

    @fsl.hookimpl
    def fsl_run_finished(self):
        self.told.append(("finished",))


@pytest.fixture
def watched(toy_recipe: Path, toy_plugins: Loaded, monkeypatch: pytest.MonkeyPatch):
    def run(watching: Watching, *overrides: str) -> list[tuple]:
        toy_plugins.observers.add(watching)
        monkeypatch.setattr(api, "load", lambda **options: toy_plugins)
        try:
            fsl.run(toy_recipe, overrides, out="run", device="cpu", progress=False)
        except (Exception, KeyboardInterrupt) as error:
            watching.told.append((type(error),))
        return watching.told

    return run


@pytest.mark.parametrize(
    ("error", "interrupted", "reason"),
    [
        (KeyboardInterrupt(), True, "KeyboardInterrupt"),
        (OSError("the disk is gone.\nor so"), False, "the disk is gone"),
    ],
)
def test_a_run_that_ends_early_is_told_once(watched, error, interrupted, reason):
    expected = [("started",), ("stopped", 2, interrupted, reason), (type(error),)]
    assert watched(Watching(error)) == expected


def test_a_run_that_is_complete_is_not_stopped(watched):
    assert watched(Watching()) == [("started",), ("finished",)]


def test_a_run_that_fails_before_its_first_step_is_stopped_too(watched, monkeypatch):
    def refused(run):
        raise fsl.DataError("no data. Some")

    monkeypatch.setattr("fsl_core.training.outer_loop.check_data", refused)
    assert watched(Watching()) == [("stopped", 0, False, "no data. Some"), (fsl.DataError,)]


def test_training_without_a_recipe_tells_it_too(toy_plugins: Loaded, monkeypatch):
    def broken(step: int, steps: int) -> float:
        raise ValueError("no such rate")

    watching = Watching()
    toy_plugins.observers.add(watching)
    monkeypatch.setattr(api, "load", lambda **options: toy_plugins)
    source = toy_plugins.catalogue.get("episodes", "blobs").factory()
    backbone = toy_plugins.catalogue.get("backbone", "mlp").factory(source.task, hidden=[4])
    adapter = toy_plugins.catalogue.get("adapter", "nearest-centroid").factory(source.task)
    with pytest.raises(ValueError, match="no such rate"):
        fsl.train(fsl.Learner(backbone, adapter), source, steps=1, schedule=broken, progress=False)
    assert watching.told == [("started",), ("stopped", 0, False, "no such rate")]


def test_the_sweep_of_a_run_is_told(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    from fsl_core.config.matrix import read_matrix

    toy_recipe.write_text(f"{toy_recipe.read_text()}matrix: {{seed: [0, 1]}}\n")
    cells = read_matrix(toy_recipe, toy_plugins.catalogue, []).cells
    jobs = make_jobs(cells, tmp_path / "seeds" / "runs")
    prepare(jobs, toy_plugins, "cpu", 1, "seeds")
    told = json.loads((jobs[0].directory / "environment.json").read_text())
    assert told["sweep"] == "seeds"
    files = [Path(file) for file in toy_plugins.files]
    with open_run(jobs[0].directory, "cpu", write=False, plugins=files) as run:
        assert run.view().sweep == "seeds"


def test_a_run_alone_belongs_to_no_sweep(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    with new_run(tmp_path / "run", recipe, toy_plugins, torch.device("cpu"), []) as run:
        assert run.view().sweep == ""

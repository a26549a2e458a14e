"""A run that is resumed in another environment says from which step on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.engine.execution import Precision
from fsl_core.errors import Interrupted, RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.runs import environment
from fsl_core.runs.keeping import keep_run
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.stopping import Stop
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")


class AfterTwo:
    """Asks for a stop while the second step is being finished."""

    def __init__(self, stop: Stop):
        self.stop = stop

    @fsl.hookimpl
    def fsl_step_finished(self, step: int) -> None:
        self.stop.requested = step == 2


@pytest.fixture
def begun(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    """Two steps of a run are done."""
    recipe, out = read_recipe(toy_recipe, toy_plugins.catalogue), tmp_path / "out"
    with new_run(out, recipe, toy_plugins, CPU, [toy_recipe.parent / "fslplugin.py"]) as run:
        run.stop = Stop()
        run.observers.add(AfterTwo(run.stop))
        with pytest.raises(Interrupted):
            train(run)
    return out


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """Another machine with another torch."""
    here = environment.describe_environment

    def move(processor: str, torch_version: str = "3.0") -> None:
        def there(plugins):
            found = here(plugins)
            packages = {**found["packages"], "torch": torch_version}
            return {**found, "processor": processor, "packages": packages}

        monkeypatch.setattr(environment, "describe_environment", there)

    return move


def went_on(run: Path) -> list[dict]:
    return json.loads((run / "environment.json").read_text()).get("went_on", [])


def test_the_same_environment_is_not_told(begun: Path):
    before = (begun / "environment.json").read_bytes()
    with open_run(begun, CPU, write=True) as run:
        assert not run.notes
    assert (begun / "environment.json").read_bytes() == before


def test_each_change_is_kept_with_its_step(begun: Path, elsewhere):
    elsewhere("Abacus")
    with open_run(begun, CPU, write=False):
        assert went_on(begun) == []  # a reader computes no step
    for _ in range(2):  # the second time nothing has changed since
        with open_run(begun, CPU, write=True) as run:
            pass
    change = {"at": 2, "packages": {"torch": "3.0"}, "processor": "Abacus"}
    assert went_on(begun) == [change]
    elsewhere("Slide rule")
    with open_run(begun, CPU, write=True) as run:
        (note,) = run.notes
        assert note.startswith("from step 2 on computed in another environment: processor in env")
        run.restore_last()
        train(run)
        judge(run)
    assert went_on(begun) == [change, {"at": 2, "processor": "Slide rule"}]
    elsewhere("Fingers")
    with open_run(begun, CPU, write=True):
        assert len(went_on(begun)) == 2  # it is finished


def test_what_is_kept_names_no_machine(begun: Path, elsewhere, tmp_path: Path):
    file = begun / "environment.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "platform": "Linux-1.2-of-mine"}))
    elsewhere("Abacus")
    with open_run(begun, CPU, write=True) as run:
        run.restore_last()
        train(run)
        judge(run)
    kept = keep_run(begun, tmp_path / "kept")
    (change,) = went_on(kept)
    assert change["processor"] == "Abacus"
    assert "-" not in change["platform"]
    assert json.loads((kept / "environment.json").read_text())["platform"] == "Linux"


def test_a_damaged_list_is_one_line(begun: Path):
    file = begun / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "went_on": 3}))
    with (
        pytest.raises(RunError, match=r"environment\.json: 'went_on' holds 3\."),
        open_run(begun, CPU, write=True),
    ):
        pass


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_precision_can_be_resumed(begun: Path, precision: str):
    file = begun / "execution.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "precision": precision}))
    with open_run(begun, CPU, write=True) as run:
        assert run.choice.execution.precision == precision

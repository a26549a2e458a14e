"""Run directories that two sweeps make at the same time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from fsl_core.errors import RunError
from fsl_core.runs.files import IN_USE, RECIPE
from fsl_core.sweeping import prepare


@pytest.fixture
def job(tmp_path: Path) -> SimpleNamespace:
    recipe = SimpleNamespace(document=SimpleNamespace(source="a.yaml"))
    cell = SimpleNamespace(recipe=recipe, title="seed 0")
    return SimpleNamespace(directory=tmp_path, cell=cell, state="waiting", error="")


LOADED = SimpleNamespace(plugins=[], files=[])


@pytest.mark.parametrize("other_ends", [False, True], ids=["makes it", "dies"])
def test_a_directory_that_another_sweep_makes_is_waited_for(job, monkeypatch, other_ends):
    calls = []

    def prepare_run(directory: Path, *_: object) -> None:
        calls.append(directory)
        if len(calls) < 3:
            raise RunError(f"{directory}: {IN_USE}. Wait for it, or give another --out")
        (directory / RECIPE).touch()
        if not other_ends:
            raise RunError(f"{directory}: {IN_USE}. Wait for it, or give another --out")

    monkeypatch.setattr(prepare, "prepare_run", prepare_run)
    prepare.prepare([job], LOADED, "cpu", 1, "out")
    assert (len(calls), job.state, job.error) == (3, "waiting", "")


def test_another_refusal_fails_the_run(job, monkeypatch):
    def prepare_run(directory: Path, *_: object) -> None:
        raise RunError(f"{directory}: holds other files. An empty one")

    monkeypatch.setattr(prepare, "prepare_run", prepare_run)
    prepare.prepare([job], LOADED, "cpu", 1, "out")
    assert job.state == "failed"
    assert job.error.endswith(": holds other files. An empty one")

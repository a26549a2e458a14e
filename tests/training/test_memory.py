"""A lack of memory ends in one line that says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsl_core.config.recipe import read_recipe
from fsl_core.engine.memory import is_out_of_memory
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.errors import RunError, TrainingError
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.opening import new_run
from fsl_core.training import judging, outer_loop

CPU = torch.device("cpu")
SMALLER = "A smaller backbone, smaller items, or fewer of them in an episode"


def too_large(*_: object, **__: object) -> None:
    torch.empty(2**60)  # what torch itself raises where memory is short


def test_what_torch_says_is_understood():
    with pytest.raises(RuntimeError) as raised:
        too_large()
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(
    ("execution", "tasks", "remedy"),
    [
        ("{mode: vmap}", 64, "execution.chunk: 16, because now it takes 64 tasks at a time"),
        (
            "{mode: vmap, chunk: 8}",
            64,
            "execution.chunk: 2, because now it takes 8 tasks at a time",
        ),
        ("{mode: vmap, chunk: 1}", 64, SMALLER),
        ("{mode: loop}", 64, SMALLER),
        (
            "{mode: loop, workers: 2}",
            4,
            "execution.workers: 1, which takes one task at a time, or a smaller backbone",
        ),
    ],
)
def test_a_meta_batch_that_does_not_fit(
    toy_recipe: Path,
    toy_plugins: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    execution: str,
    tasks: int,
    remedy: str,
):
    changes = [f"execution={execution}", f"outer.meta_batch_size={tasks}"]
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, changes)
    short = type("Short", (MetaGradient,), {"__call__": too_large})
    monkeypatch.setattr(outer_loop, "MetaGradient", short)  # a trial had room
    with (
        new_run(tmp_path / "run", recipe, toy_plugins, CPU, []) as run,
        pytest.raises(TrainingError) as raised,
    ):
        outer_loop.train(run)
    assert str(raised.value).startswith(f"outer step 1: not enough memory. {remedy}")
    assert "\n" not in str(raised.value)


def test_a_trial_that_does_not_fit(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Then one task at a time is computed, and the reason says what would fit."""
    compute = MetaGradient.__call__

    def short(self: MetaGradient, *arguments: object, **options: object) -> object:
        if self.execution.mode != "loop":
            too_large()
        return compute(self, *arguments, **options)

    monkeypatch.setattr(MetaGradient, "__call__", short)
    changes = ["execution={mode: vmap}", "outer.steps=1", "outer.validate_every=0"]
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, changes)
    with new_run(tmp_path / "run", recipe, toy_plugins, CPU, []) as run:
        outer_loop.train(run)
        assert run.choice.execution.mode == "loop"
        assert run.choice.reason == (
            "loop instead of vmap: it failed: not enough memory; "
            "a smaller execution.chunk takes fewer tasks at a time"
        )


def test_an_evaluation_that_does_not_fit(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = read_recipe(
        toy_recipe, toy_plugins.catalogue, ["outer.steps=1", "outer.validate_every=0"]
    )
    with new_run(tmp_path / "run", recipe, toy_plugins, CPU, []) as run:
        outer_loop.train(run)
        monkeypatch.setattr(judging, "evaluate", too_large)
        with pytest.raises(RunError, match=rf"^evaluation on test: not enough memory\. {SMALLER}$"):
            judging.judge(run)


def test_other_errors_stay_as_they_are(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(MetaGradient, "__call__", broken)
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    with (
        new_run(tmp_path / "run", recipe, toy_plugins, CPU, []) as run,
        pytest.raises(RuntimeError, match=r"^shapes do not match$"),
    ):
        outer_loop.train(run)

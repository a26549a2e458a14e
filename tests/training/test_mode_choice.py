"""One recipe is computed in one way on one machine, whatever a stopwatch says."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest
import torch

import fsl_core as fsl_public
from fsl_core.assembly.experiment import build_experiment
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.config.recipe import read_recipe
from fsl_core.engine import choice as engine_choice
from fsl_core.engine.choice import Choice
from fsl_core.engine.execution import Execution
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs.opening import new_run, open_run, read_choice
from fsl_core.runs.run import Run
from fsl_core.training import mode_choice as execution
from fsl_core.training.judging import judge
from fsl_core.training.mode_choice import choose_execution, kept_execution, tune_execution
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
AUTO = ("execution.mode=auto", "outer.validate_every=0", "outer.steps=4", "evaluate.episodes=4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return tmp_path / "cache"


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds that each execution is measured to take; a test may change them."""
    seconds = {"loop": 3.0, "loop, 2 workers": 2.0, "vmap": 1.0, "compiled": 0.1}

    def timed(self, execution, batches=3):
        yield seconds[str(execution).removesuffix(", bf16").removesuffix(", chunks of 2")]

    monkeypatch.setattr(engine_choice._Trials, "_timed", timed)
    return seconds


def fresh(recipe: Path, loaded: Loaded, *overrides: str):
    return build_experiment(read_recipe(recipe, loaded.catalogue, overrides or AUTO), CPU)


def settled(recipe: Path, loaded: Loaded, out: str, *overrides: str) -> Choice:
    checked = read_recipe(recipe, loaded.catalogue, (*AUTO, *overrides))
    with new_run(recipe.parent / out, checked, loaded, CPU, []) as run:
        return choose_execution(run)


def finished(recipe: Path, loaded: Loaded, out: str) -> Run:
    checked, plugin = read_recipe(recipe, loaded.catalogue, AUTO), recipe.parent / "fslplugin.py"
    with new_run(recipe.parent / out, checked, loaded, CPU, [plugin]) as run:
        train(run)
        judge(run)
        return run


def test_the_next_run_reads_what_the_first_one_measured(toy_recipe, toy_plugins, stopwatch):
    first = settled(toy_recipe, toy_plugins, "a")
    assert first.execution == Execution("vmap")
    assert first.when == (
        f"measured on {date.today()} and kept for later runs; "
        "`fsl tune-execution RECIPE` measures again"
    )
    stopwatch.update({"vmap": 9.0})  # the machine is busy now
    again = settled(toy_recipe, toy_plugins, "b")
    assert (again.execution, again.reason, again.seconds) == (
        first.execution,
        first.reason,
        first.seconds,
    )
    assert again.when == first.when.replace("on", "before, on", 1).replace(
        " and kept for later runs", ""
    )
    assert kept_execution(fresh(toy_recipe, toy_plugins), CPU) == again


def test_runs_of_one_recipe_have_equal_bits(toy_recipe, toy_plugins, stopwatch):
    runs = [finished(toy_recipe, toy_plugins, "a")]
    stopwatch.update({"vmap": 9.0, "loop": 0.1})
    runs.append(finished(toy_recipe, toy_plugins, "b"))
    for file in ("checkpoints/last.safetensors", "episodes.csv"):
        assert len({(run.directory / file).read_bytes() for run in runs}) == 1
    results = [json.loads((run.directory / "result.json").read_text()) for run in runs]
    assert {result["execution"] for result in results} == {
        "vmap: all tasks as one batch were fastest"
    }


@pytest.mark.parametrize("mode", ["auto", "loop"])
def test_a_precision_of_gpus_is_said_to_change_nothing(toy_recipe, toy_plugins, stopwatch, mode):
    stopwatch |= {f"{name}, tf32": seconds for name, seconds in stopwatch.items()}
    named = ("execution.precision=tf32", f"execution.mode={mode}")
    told = settled(toy_recipe, toy_plugins, "a", *named).reason
    assert told.endswith("; tf32 is of GPUs and changes nothing on cpu")


@pytest.mark.parametrize("units", [True, False], ids=["with units", "without units"])
def test_bf16_is_said_to_be_slower_where_nothing_multiplies_it(
    toy_recipe, toy_plugins, stopwatch, monkeypatch, units
):
    monkeypatch.setattr(execution, "multiplies_bfloat16", lambda device: units)
    named = ("execution.precision=bf16", "execution.mode=loop")
    told = settled(toy_recipe, toy_plugins, "a", *named).reason
    slower = "; this cpu has no units for bfloat16, and is slower in bf16 than in float32"
    assert told.endswith(slower) is not units


@pytest.mark.parametrize("mode", ["auto", "vmap"])
def test_no_more_tasks_are_batched_than_fit(
    toy_recipe, toy_plugins, stopwatch, monkeypatch: pytest.MonkeyPatch, mode
):
    stopwatch.update({"vmap, chunks of 1": 1.0, "compiled, chunks of 1": 2.0})
    monkeypatch.setattr(execution, "memory_of", lambda device: 1000)
    first = settled(toy_recipe, toy_plugins, "a", f"execution.mode={mode}")
    assert first.execution == Execution("vmap", chunk=1)
    why = "more than 1 task at a time would take over half of the memory"
    assert first.reason.endswith(f"; {why}")
    again = settled(toy_recipe, toy_plugins, "b", f"execution.mode={mode}")
    assert (again.execution, again.reason) == (first.execution, first.reason)
    # What the recipe names is taken as it is, and one task at a time has nothing to batch.
    named = settled(toy_recipe, toy_plugins, "c", "execution.mode=vmap", "execution.chunk=2")
    assert (named.execution, named.reason) == (Execution("vmap", chunk=2), "the recipe names it")
    assert settled(toy_recipe, toy_plugins, "d", "execution.mode=loop").execution == Execution()


@pytest.mark.parametrize(
    "override",
    [
        "backbone.hidden=[9]",
        "adapter.temperature=2.0",
        "outer.meta_batch_size=3",
        "outer.steps=8",
        "episodes.n_way=4",
        "execution.chunk=2",
        "execution.precision=bf16",
    ],
)
def test_what_decides_speed_is_measured_for_itself(toy_recipe, toy_plugins, stopwatch, override):
    settled(toy_recipe, toy_plugins, "a")
    found = settled(toy_recipe, toy_plugins, "b", override)
    assert found.when.startswith("measured on")


def test_threads_and_device_are_part_of_the_machine(
    toy_recipe, toy_plugins, stopwatch, monkeypatch
):
    settled(toy_recipe, toy_plugins, "a")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert settled(toy_recipe, toy_plugins, "b").when.startswith("measured on")


@pytest.mark.parametrize(
    "override", ["seed=5", "outer.optimizer.lr=0.5", "outer.steps=7", "evaluate.seed=2"]
)
def test_what_does_not_decide_speed_shares_a_choice(toy_recipe, toy_plugins, stopwatch, override):
    settled(toy_recipe, toy_plugins, "a")
    assert settled(toy_recipe, toy_plugins, "b", override).when.startswith("measured before")


def test_a_recipe_copied_with_its_plugin_is_the_same_recipe(toy_recipe, toy_plugins, stopwatch):
    settled(toy_recipe, toy_plugins, "a", "adapter={name: explodes}")
    other = toy_recipe.parent / "other"
    other.mkdir()
    for name in ("toy.yaml", "fslplugin.py"):
        shutil.copy(toy_recipe.parent / name, other)
    loaded = load(entry_points=False, files=[other / "fslplugin.py"])
    explodes = "adapter={name: explodes}"
    assert settled(other / "toy.yaml", loaded, "a", explodes).when.startswith("measured before")
    with (other / "fslplugin.py").open("a") as plugin:
        plugin.write("\n# another version\n")
    loaded = load(entry_points=False, files=[other / "fslplugin.py"])
    assert settled(other / "toy.yaml", loaded, "b", explodes).when.startswith("measured on")


def test_a_damaged_file_is_measured_again_and_said(toy_recipe, toy_plugins, stopwatch, cache):
    settled(toy_recipe, toy_plugins, "a")
    (file,) = (cache / "execution").glob("*.json")
    file.write_text("{")
    assert settled(toy_recipe, toy_plugins, "b").when == (
        f"measured again, because {file} was damaged"
    )
    assert settled(toy_recipe, toy_plugins, "c").when.startswith("measured before")


def test_without_a_cache_nothing_is_measured(toy_recipe, toy_plugins, stopwatch, cache):
    cache.write_text("a file where the folder should be")
    stopwatch.clear()
    found = settled(toy_recipe, toy_plugins, "a")
    assert (found.execution, found.when) == (Execution(), "")
    assert found.reason.startswith(
        f"nothing is measured, because it could not be kept: {cache / 'execution'}: "
    )


def test_the_first_of_two_processes_at_once_decides(
    toy_recipe, toy_plugins, stopwatch, monkeypatch
):
    measure = execution._Question.measure

    def interrupted(self):
        mine = measure(self)
        self.file.keep(Choice(Execution(workers=2), "the other one was first", {}))
        return mine

    monkeypatch.setattr(execution._Question, "measure", interrupted)
    found = settled(toy_recipe, toy_plugins, "a")
    assert found.execution == Execution(workers=2)
    assert found.when == "measured by another process at the same time"


def test_a_choice_that_the_learner_rules_out_is_measured_again(
    toy_recipe, toy_plugins, stopwatch, monkeypatch
):
    settled(toy_recipe, toy_plugins, "a")
    monkeypatch.setattr(NearestCentroid, "vectorizable", False)
    assert kept_execution(fresh(toy_recipe, toy_plugins), CPU) is None
    assert settled(toy_recipe, toy_plugins, "b").execution == Execution(workers=2)


def test_a_resumed_run_keeps_its_choice(toy_recipe, toy_plugins, stopwatch):
    settled(toy_recipe, toy_plugins, "a")
    run = finished(toy_recipe, toy_plugins, "b")
    stopwatch.update({"vmap": 9.0})
    tune_execution(fresh(toy_recipe, toy_plugins), CPU)
    with open_run(run.directory, CPU, write=True) as opened:
        opened.step = 2
        assert choose_execution(opened).execution == Execution("vmap")
    assert settled(toy_recipe, toy_plugins, "c").execution == Execution(workers=2)


def test_tuning_returns_what_was_kept_and_what_is(toy_recipe, toy_plugins, stopwatch):
    before, now = tune_execution(fresh(toy_recipe, toy_plugins), CPU)
    assert before is None
    assert now.execution == Execution("vmap")
    stopwatch.update({"vmap": 9.0})
    before, now = tune_execution(fresh(toy_recipe, toy_plugins), CPU)
    assert [choice.execution for choice in (before, now)] == [
        Execution("vmap"),
        Execution(workers=2),
    ]


def test_a_recipe_that_names_a_mode_is_not_tuned(toy_recipe, toy_plugins):
    with pytest.raises(fsl_public.RecipeError) as caught:
        tune_execution(fresh(toy_recipe, toy_plugins, "seed=0"), CPU)
    assert str(caught.value) == (
        f"{toy_recipe}:12: execution.mode: the recipe names `loop`, so there is nothing to "
        "measure. `-s execution.mode=auto`"
    )


def test_tuning_without_a_cache_is_refused(toy_recipe, toy_plugins, stopwatch, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(fsl_public.RunError, match="A cache folder that can be written to"):
        tune_execution(fresh(toy_recipe, toy_plugins), CPU)


def test_compiling_is_tried_once(toy_recipe, toy_plugins, monkeypatch):
    tries = []

    def compiled(function, **_):
        tries.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    for out in ("a", "b"):
        found = settled(toy_recipe, toy_plugins, out, "execution.mode=compiled")
        assert (found.execution, str(found)) == (
            Execution("compiled"),
            "compiled: the recipe names it",
        )
    assert len(tries) == 2  # the sum of the tasks' gradients, and the gradient of each


def test_a_mode_that_failed_is_kept_without_a_time(toy_recipe, toy_plugins, monkeypatch):
    def timed(self, execution, batches=3):
        if execution.mode == "vmap":
            raise RuntimeError("no batching rule")
        yield 1.0

    monkeypatch.setattr(engine_choice._Trials, "_timed", timed)
    chosen = settled(toy_recipe, toy_plugins, "a")
    assert chosen.seconds["vmap"] is None
    assert read_choice(toy_recipe.parent / "a").seconds == chosen.seconds

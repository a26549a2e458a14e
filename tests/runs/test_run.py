"""Training a toy recipe: directory, resume, refusals, non-finite losses, and what observers see."""

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
import torch
from filelock import FileLock

import fsl_core as fsl_public
from fsl_core.assembly.by_hand import by_hand
from fsl_core.config.document import read_document
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import DataError, RunError, TrainingError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.records import InMemory
from fsl_core.runs.run import Run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")


def run_recipe(path: Path, loaded: Loaded, out: Path, *overrides: str) -> Run:
    with new_run(
        out,
        read_recipe(path, loaded.catalogue, overrides),
        loaded,
        CPU,
        [path.parent / "fslplugin.py"],
    ) as run:
        train(run)
        judge(run)
        return run


def outcome(directory: Path) -> dict[str, object]:
    """All of a finished run that does not tell the time."""
    result = json.loads((directory / "result.json").read_text())
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    files = {path.name: path.read_bytes() for path in (directory / "checkpoints").iterdir()}
    return {
        "result": {key: value for key, value in result.items() if not key.endswith("_seconds")},
        "metrics": [
            {key: value for key, value in record.items() if key != "seconds"} for record in records
        ],
        "episodes": (directory / "episodes.csv").read_text(),
        **files,
    }


def test_a_run_directory_holds_everything(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    written = {
        str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()
    }
    assert written - {".lock"} == {
        "recipe.yaml",
        "begun.json",
        "data.json",
        "environment.json",
        "execution.json",
        "metrics.jsonl",
        "episodes.csv",
        "result.json",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["episodes"] == 10
    assert 0.5 < result["accuracy"] <= 1
    assert result["norm"] == "none"
    scores = [
        float(line.split(",")[1])
        for line in (tmp_path / "run" / "episodes.csv").read_text().splitlines()[1:]
    ]
    assert sum(scores) / 10 == pytest.approx(result["accuracy"])
    assert result["interval"] == pytest.approx(
        1.96 * torch.tensor(scores).std().item() / 10**0.5, rel=1e-5
    )


def test_two_runs_of_one_recipe_are_equal(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    for name in ("a", "b"):
        run_recipe(toy_recipe, toy_plugins, tmp_path / name)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_another_seed_trains_on_other_episodes_and_is_judged_on_the_same(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "a")
    run_recipe(toy_recipe, toy_plugins, tmp_path / "b", "seed=1")
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert first["metrics"] != second["metrics"]
    assert first["result"]["episode_set"] == second["result"]["episode_set"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    """A real process is killed with SIGKILL at several moments, resumed each time, and ends like
    one left alone."""
    settings = [
        "outer.steps=250",
        "outer.checkpoint_every=7",
        "outer.validate_every=50",
        "outer.schedule={name: cosine}",
    ]
    overrides = [word for setting in settings for word in ("-s", setting)]
    environment = {**os.environ, "FSL_LOAD_PLUGINS": "none", "OMP_NUM_THREADS": "1"}
    fsl = [sys.executable, "-m", "fsl_core"]
    subprocess.run(
        [*fsl, "run", toy_recipe, *overrides, "--out", "whole"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    command, kills = [*fsl, "run", str(toy_recipe), *overrides, "--out", "killed"], 0
    for steps in (1, 120):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        ) as process:
            wait_for(
                lambda steps=steps: (
                    last_step(tmp_path / "killed") >= steps or process.poll() is not None
                )
            )
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        command = [*fsl, "resume", "killed"]
    assert kills >= 2
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def last_step(directory: Path) -> int:
    from fsl_core.runs.checkpoints import progress_of

    path = directory / "checkpoints" / "last.safetensors"
    return progress_of(path)["step"] if path.is_file() else -1


def wait_for(condition) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_writer_is_refused(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(RunError, match="another process is writing to this run"),
        open_run(tmp_path / "run", CPU, write=True),
    ):
        pass


def test_a_directory_in_use_is_refused(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    with pytest.raises(RunError, match="holds a finished run of this recipe. `fsl resume"):
        run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    with pytest.raises(
        RunError, match=r"holds a run of another recipe \(seed: 0 → 1\)\. Another --out"
    ):
        run_recipe(toy_recipe, toy_plugins, tmp_path / "run", "seed=1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds other files. An empty or new folder for --out"):
        run_recipe(toy_recipe, toy_plugins, tmp_path / "full")
    with pytest.raises(RunError, match="no run here"), open_run(tmp_path / "full", CPU, write=True):
        pass
    message = f"no run here .recipe.yaml is absent.. {tmp_path / 'run'}$"
    with pytest.raises(RunError, match=message), open_run(tmp_path, CPU, write=True):
        pass


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    with pytest.raises(
        TrainingError,
        match=r"outer step 7, episode 12: the loss is nan. .* The last good checkpoint is .*last.safetens",
    ):
        run_recipe(
            toy_recipe,
            toy_plugins,
            tmp_path / "run",
            "adapter={name: explodes}",
            "outer.checkpoint_every=2",
        )
    assert last_step(tmp_path / "run") == 6


def test_data_that_cannot_give_the_episodes_is_refused_before_training(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch
):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    blobs = recipe.chosen["episodes",].factory

    def check(self, split, task=None):
        raise DataError(f"split {split} is too small")

    monkeypatch.setattr(blobs, "check", check)
    with pytest.raises(
        DataError,
        match="split train is too small\nsplit test is too small\nsplit validation is too small",
    ):
        run_recipe(toy_recipe, toy_plugins, tmp_path / "run")


def test_evaluation_with_other_ways_and_shots(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    run = run_recipe(
        toy_recipe,
        toy_plugins,
        tmp_path / "run",
        "evaluate.n_way=6",
        "evaluate.n_shot=1",
        "evaluate.n_query=3",
    )
    assert run.experiment.test_task.n_way == 6
    with pytest.raises(
        fsl_public.RecipeError,
        match=r"evaluate.n_way: adapter.head.weight of adapter 'explodes' has a size fixed by n_way 3",
    ):
        run_recipe(
            toy_recipe, toy_plugins, tmp_path / "b", "evaluate.n_way=6", "adapter={name: explodes}"
        )


def test_an_expectation_of_no_result_is_refused(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    with pytest.raises(
        fsl_public.RecipeError,
        match="expect.acuracy: no such result. Expected accuracy, or accuracy_after_",
    ):
        run_recipe(
            toy_recipe, toy_plugins, tmp_path / "a", "expect.acuracy={value: 1, tolerance: 0}"
        )


def test_observers_see_the_run(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    seen, measured = [], []

    class Observer:
        @fsl_public.hookimpl
        def fsl_run_started(self, run):
            assert isinstance(run, fsl_public.RunView)
            seen.append(("started", run.step))

        @fsl_public.hookimpl
        def fsl_step_finished(self, run, step, metrics):
            seen.append(("step", step))
            measured.append(set(metrics))

        @fsl_public.hookimpl
        def fsl_evaluated(self, split, result):
            seen.append((split, result["episodes"]))

    toy_plugins.observers.add(Observer())
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    assert seen[0] == ("started", 0)
    assert [s for s in seen if s[0] == "step"] == [("step", step) for step in range(1, 13)]
    assert measured == [{"loss", "accuracy", "lr", "gradient_norm", "seconds"}] * 12
    assert [s for s in seen if s[0] == "validation"] == [("validation", 4)] * 3
    assert seen[-1] == ("test", 10)


class Keeps:
    """An observer that keeps every view."""

    def __init__(self):
        self.started, self.steps, self.finished = [], [], []

    @fsl_public.hookimpl
    def fsl_run_started(self, run):
        self.started.append(run)

    @fsl_public.hookimpl
    def fsl_step_finished(self, run):
        self.steps.append(run)

    @fsl_public.hookimpl
    def fsl_evaluated(self, run, split):
        if split == "test":
            self.finished.append(run)


def test_a_view_tells_all_of_a_run(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    kept = Keeps()
    toy_plugins.observers.add(kept)
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    (started,), (finished,) = kept.started, kept.finished
    assert (started.name, started.directory) == ("toy", tmp_path / "run")
    assert (started.seed, started.steps, started.device) == (0, 12, "cpu")
    assert (started.step, started.resumed_from, started.best) == (0, 0, None)
    assert started.execution.startswith("loop")
    assert (started.task.n_way, started.test_task.n_query) == (3, 4)
    assert [view.step for view in kept.steps] == list(range(1, 13))
    assert all(view.learner is started.learner for view in kept.steps)
    written = read_document(tmp_path / "run" / "recipe.yaml").data
    assert finished.recipe == written
    finished.recipe["outer"]["steps"] = 0
    assert finished.recipe == written
    assert finished.best.step in (5, 10, 12)
    assert [*finished.checkpoints()] == ["last", "best"]
    assert all(path.is_file() for path in finished.checkpoints().values())
    assert [r["step"] for r in finished.metrics() if "split" not in r] == list(range(1, 13))
    assert finished.parameter_names == tuple(
        name for name, _ in finished.learner.named_parameters()
    )


def test_a_view_predicts_the_episodes_that_the_run_was_judged_on(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    kept = Keeps()
    toy_plugins.observers.add(kept)
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    (view,) = kept.finished
    with (tmp_path / "run" / "episodes.csv").open() as file:
        scores = [float(row["accuracy"]) for row in csv.DictReader(file)]
    shown = list(view.predict_episodes("test", [7, 2]))
    assert [int(episode.id) for episode, _ in shown] == [7, 2]
    assert [view.test_task.score(p, e.query.y) for e, p in shown] == [scores[7], scores[2]]


def test_a_view_says_what_a_run_was_resumed_from(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    class Breaks:
        @fsl_public.hookimpl
        def fsl_step_finished(self, step):
            if step == 9:
                raise OSError("ended")

    toy_plugins.observers.add(Breaks())
    with pytest.raises(OSError, match="ended"):
        run_recipe(toy_recipe, toy_plugins, tmp_path / "run")
    kept = Keeps()
    with open_run(
        tmp_path / "run",
        torch.device("cpu"),
        write=True,
        plugins=[toy_recipe.parent / "fslplugin.py"],
    ) as run:
        run.observers.add(kept)
        run.restore_last()
        train(run)
    (started,) = kept.started
    assert (started.step, started.resumed_from) == (8, 8)
    assert kept.steps[-1].resumed_from == 8


def test_a_view_of_a_run_in_memory_has_no_files(toy_recipe: Path, toy_plugins: Loaded):
    kept = Keeps()
    toy_plugins.observers.add(kept)
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    with new_run(None, recipe, toy_plugins, torch.device("cpu"), []) as run:
        train(run)
        judge(run)
    (view,) = kept.finished
    assert (view.directory, view.checkpoints()) == (None, {})
    assert view.metrics()[0]["step"] == 1
    assert view.recipe["outer"]["steps"] == 12
    assert len(list(view.predict_episodes("test", range(3)))) == 3


def test_training_without_a_recipe_shows_its_options(toy_plugins: Loaded):
    """The progress bar reads them."""
    make = toy_plugins.catalogue.get
    source = make("episodes", "blobs").factory(n_way=3)
    backbone = make("backbone", "mlp").factory(task=source.task, hidden=[8])
    adapter = make("adapter", "nearest-centroid").factory(task=source.task)
    learner = fsl_public.Learner(backbone, adapter)
    weighting = make("weighting", "uniform").factory()
    experiment = by_hand(
        learner, source, weighting, torch.device("cpu"), 4, {"mode": "loop"}, {"steps": 3}
    )
    told = Run(
        InMemory(),
        "by hand",
        experiment.recipe,
        toy_plugins.observers,
        {},
        experiment,
        None,
        lambda step, steps: 1.0,
        torch.device("cpu"),
    ).view()
    assert (told.seed, told.steps) == (4, 3)
    assert [*told.recipe] == ["seed", "outer", "execution", "evaluate"]
    assert told.recipe["outer"]["meta_batch_size"] == 4
    assert len(fsl_public.train(learner, source, steps=3)) == 3


FRAGILE = """
import fsl_core as fsl

seen = []

@fsl.hookimpl
def fsl_step_finished(step):
    seen.append(step)
    if step == 3:
        {fault}

@fsl.hookimpl
def fsl_evaluated(split):
    seen.append(split)
"""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise OSError('disk full')", "OSError: disk full"),
        ("raise SystemExit(1)", r"called sys.exit\(1\). "),
    ],
)
def test_an_observer_that_raises_is_named_and_left_out(
    toy_recipe: Path, tmp_path: Path, fault: str, reason: str
):
    (tmp_path / "fragile.py").write_text(FRAGILE.format(fault=fault))
    (tmp_path / "sound.py").write_text(FRAGILE.format(fault="pass"))
    loaded = load(
        entry_points=False,
        files=[tmp_path / name for name in ("fslplugin.py", "fragile.py", "sound.py")],
    )
    with pytest.warns(
        fsl_public.PluginWarning, match=rf"plugin fragile \(.*\): fsl_step_finished raised {reason}"
    ) as told:
        run_recipe(toy_recipe, loaded, tmp_path / "watched")
    assert len(told) == 1
    assert (
        "It is left out from here on and the run goes on; FSL_STRICT_PLUGINS=1 ends the run"
        in str(told[0].message)
    )
    assert told[0].filename.endswith("outer_loop.py")
    assert sys.modules["fsl_plugin_file_fragile"].seen == [1, 2, 3]
    assert len(sys.modules["fsl_plugin_file_sound"].seen) == 12 + 3 + 1
    assert next(p for p in loaded.plugins if p.name == "fragile").notes
    run_recipe(
        toy_recipe, load(entry_points=False, files=[tmp_path / "fslplugin.py"]), tmp_path / "alone"
    )
    assert outcome(tmp_path / "watched") == outcome(tmp_path / "alone")


def test_a_strict_run_ends_with_the_observers_error(
    toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "fragile.py").write_text(FRAGILE.format(fault="raise OSError('disk full')"))
    loaded = load(entry_points=False, files=[tmp_path / "fslplugin.py", tmp_path / "fragile.py"])
    monkeypatch.setenv("FSL_STRICT_PLUGINS", "1")
    with pytest.raises(OSError, match="disk full"):
        run_recipe(toy_recipe, loaded, tmp_path / "run")


def test_schedules_move_the_step_size(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    def rates(name: str, schedule: str) -> list[float]:
        run = run_recipe(
            toy_recipe,
            toy_plugins,
            tmp_path / name,
            f"outer.schedule={schedule}",
            "outer.optimizer.lr=1.0",
        )
        return [record["lr"] for record in run.records.metrics() if "lr" in record]

    assert (
        rates("a", "{name: multistep, milestones: [4, 8], gamma: 0.5}")
        == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    )
    cosine = rates("b", "{name: cosine, final_factor: 0.5}")
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert 0.5 < cosine[-1] < 0.52
    linear = rates("c", "{name: linear, final_factor: 0.4}")
    assert linear == pytest.approx([1 - 0.6 * step / 12 for step in range(12)])


def test_gradients_are_clipped(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    with new_run(
        tmp_path / "run",
        read_recipe(toy_recipe, toy_plugins.catalogue, ["outer.clip_gradient_norm=1e-9"]),
        toy_plugins,
        CPU,
        [],
    ) as run:
        train(run)
        gradients = [p.grad for p in run.experiment.learner.parameters()]
        told = [record["gradient_norm"] for record in run.read_metrics() if "lr" in record]
    assert len(told) == 12
    assert min(told) > 1e-6  # before clipping
    assert 0 < torch.nn.utils.get_total_norm(gradients) <= 1e-9 * 1.001


def test_a_restored_adapter_is_told_what_the_last_step_of_its_weights_was_told(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "run", "evaluate.checkpoint=last")
    told: list[float] = []
    monkeypatch.setattr(
        "fsl_core.builtin.nearest_centroid.NearestCentroid.on_progress",
        lambda self, progress: told.append(progress),
    )
    with open_run(tmp_path / "run", torch.device("cpu"), write=False) as opened:
        opened.restore_for_evaluation("last")
    assert told == [11 / 12]

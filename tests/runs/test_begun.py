"""A recipe edited since training is refused; another number of steps is taken where asked for."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.cli import main
from fsl_core.config.matrix import read_matrix
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RunError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs.begun import differences
from fsl_core.runs.opening import new_run, open_run, prepare_run
from fsl_core.runs.run import Run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
PROGRESS = """

class Following(fsl.Adapter):
    name = "following"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__()
        self.head = torch.nn.Linear(backbone.feature_dim, task.output_dim)

    def on_progress(self, progress):
        self.now = progress

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x))


@fsl.hookimpl(specname="fsl_register_adapters")
def also(register):
    register(Following)
"""


def run_recipe(path: Path, loaded: Loaded, out: Path, *overrides: str) -> Run:
    recipe = read_recipe(path, loaded.catalogue, overrides)
    with new_run(out, recipe, loaded, CPU, [path.parent / "fslplugin.py"]) as run:
        train(run)
        judge(run)
        return run


def go_on(out: Path, steps: int) -> Run:
    with open_run(out, CPU, write=True, steps=steps) as run:
        run.restore_last()
        train(run)
        judge(run)
        return run


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def finished(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    run_recipe(toy_recipe, toy_plugins, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("lr: 0.01", "lr: 0.1", "outer.optimizer.lr: 0.01 → 0.1"),
        ("hidden: [8]", "hidden: [8, 8]", "backbone.hidden: [8] → [8, 8]"),
        ("episodes: 10", "episodes: 20", "evaluate.episodes: 10 → 20"),
        ("seed: 0\nepisodes", "episodes", "seed: 0 → absent"),
        ("mode: loop", "mode: vmap", 'execution.mode: "loop" → "vmap"'),
        ("n_way: 3", "n_way: 3, more: ü", 'episodes.more: absent → "ü"'),
    ],
)
def test_what_was_edited_is_named(finished: Path, old: str, new: str, change: str):
    edit(finished / "recipe.yaml", old, new)
    message = f"out/recipe.yaml: changed since training began ({change}). The recipe as it was, or"
    with pytest.raises(RunError, match=re.escape(message)), open_run(finished, CPU, write=False):
        pass


@pytest.mark.parametrize("command", ["resume", "eval", "report", "predict"])
def test_every_command_refuses(finished: Path, monkeypatch, capsys, command: str):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    edit(finished / "recipe.yaml", "steps: 12", "steps: 20")
    edit(finished / "recipe.yaml", "lr: 0.01", "lr: 0.1")
    pictures = ["--support", "out", "--query", "out"] if command == "predict" else []
    monkeypatch.setattr(sys, "argv", ["fsl", command, "out", *pictures])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    changes = "outer.optimizer.lr: 0.01 → 0.1, outer.steps: 12 → 20"
    line = f"out/recipe.yaml: changed since training began ({changes}). The recipe as it was, or"
    told = capsys.readouterr()
    assert told.err.startswith(line)
    assert not told.out


def test_what_changes_no_number_may_be_edited(finished: Path):
    edit(finished / "recipe.yaml", "requires: []", "requires: [torch] # it does")
    edit(finished / "recipe.yaml", "expect: {}", "expect: {accuracy: {value: 1, tolerance: 1}}")
    edit(finished / "recipe.yaml", "seed: 0\nepisodes:", "episodes:")
    with (finished / "recipe.yaml").open("a") as file:
        file.write("seed: 0\n")
    with open_run(finished, CPU, write=False) as run:
        assert run.records.result()


def test_a_directory_of_an_earlier_version_is_taken_as_it_is(finished: Path):
    (finished / "begun.json").unlink()
    edit(finished / "recipe.yaml", "lr: 0.01", "lr: 0.1")
    with open_run(finished, CPU, write=False) as run:
        assert run.recipe.sections.outer.optimizer.lr == 0.1


def test_a_prepared_directory_is_held_to_its_recipe_too(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    environment = {"recipe": "toy", "plugin_files": [str(tmp_path / "fslplugin.py")]}
    prepare_run(tmp_path / "cell", recipe, environment)
    edit(tmp_path / "cell" / "recipe.yaml", "steps: 12", "steps: 1")
    with (
        pytest.raises(RunError, match="steps: 12 → 1"),
        open_run(tmp_path / "cell", CPU, write=True),
    ):
        pass


def ended(out: Path) -> tuple[object, ...]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    files = [(out / "checkpoints" / f"{which}.safetensors") for which in ("last", "best")]
    return (records, (out / "episodes.csv").read_text(), *(file.read_bytes() for file in files))


def test_more_steps_of_a_plain_recipe_are_a_longer_run(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    """No schedule, no warm-up, no validation beside the regular ones: equal bits."""
    run_recipe(toy_recipe, toy_plugins, tmp_path / "out", "outer.steps=10")
    shorter = (tmp_path / "out" / "result.json").read_text()
    table = (tmp_path / "out" / "episodes.csv").read_text()
    run = go_on(tmp_path / "out", 15)
    assert run.notes == [
        "steps changed at step 10 from 10 to 15; "
        "figures are those of a run of 15 steps from the start"
    ]
    run_recipe(toy_recipe, toy_plugins, tmp_path / "whole", "outer.steps=15")
    assert ended(tmp_path / "out") == ended(tmp_path / "whole")
    recipes = [(tmp_path / name / "recipe.yaml").read_text() for name in ("out", "whole")]
    assert recipes[0] == recipes[1]
    assert (tmp_path / "out" / "result-10.json").read_text() == shorter
    assert (tmp_path / "out" / "episodes-10.csv").read_text() == table
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["steps"] == 15
    assert result["steps_changed"] == [{"at": 10, "from": 10, "to": 15, "differs": []}]
    with open_run(tmp_path / "out", CPU, write=False) as opened:  # and it is no edited recipe
        assert opened.steps == 15


def test_what_is_stretched_is_told(toy_recipe: Path, tmp_path: Path):
    plugin = tmp_path / "fslplugin.py"
    plugin.write_text(plugin.read_text() + PROGRESS)
    loaded = load(entry_points=False, files=[plugin])
    overrides = ("outer.schedule=cosine", "adapter=following")
    run_recipe(toy_recipe, loaded, tmp_path / "out", *overrides)
    run = go_on(tmp_path / "out", 18)
    (change,) = json.loads((tmp_path / "out" / "result.json").read_text())["steps_changed"]
    assert change == {
        "at": 12,
        "from": 12,
        "to": 18,
        "differs": [
            "schedule cosine is stretched over 18 steps from here on",
            "adapter following is told progress (for warm-ups), which is stretched too",
            "step 12, then the last, was validated too and may be the best",
        ],
    }
    assert "figures differ from a run of 18 steps from the start: schedule cosine" in run.notes[0]
    rates = [record["lr"] for record in run.records.metrics() if "lr" in record]
    assert rates[11] < rates[12] == pytest.approx(0.01 * (1 + math.cos(math.pi * 12 / 18)) / 2)
    go_on(tmp_path / "out", 20)
    changes = json.loads((tmp_path / "out" / "result.json").read_text())["steps_changed"]
    assert [(c["at"], c["from"], c["to"]) for c in changes] == [(12, 12, 18), (18, 18, 20)]


def test_steps_that_do_not_fit(finished: Path, toy_recipe: Path, toy_plugins: Loaded):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with (
        pytest.raises(RunError, match=r"--steps 11: 12 steps are done\. 12 or more"),
        open_run(finished, CPU, write=True, steps=11),
    ):
        pass
    edit(finished / "recipe.yaml", "lr: 0.01", "lr: 0.1")
    with (
        pytest.raises(RunError, match=r"lr: 0\.01 → 0\.1\)\. The recipe as it was, or a new run"),
        open_run(finished, CPU, write=True, steps=13),
    ):
        pass
    edit(finished / "recipe.yaml", "lr: 0.1", "lr: 0.01")
    assert before == {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}


def test_edited_steps_are_what_the_option_is_for(finished: Path):
    edit(finished / "recipe.yaml", "steps: 12", "steps: 13")
    with (
        pytest.raises(RunError, match=r"12 → 13\)\. The .* or `fsl resume .*/out --steps 13`"),
        open_run(finished, CPU, write=True),
    ):
        pass
    assert go_on(finished, 13).step == 13
    edit(finished / "recipe.yaml", "steps: 13", "steps: 12")
    with open_run(finished, CPU, write=True, steps=13) as run:  # what it was: nothing changes
        assert run.records.result()["steps"] == 13
    assert "steps: 13" in (finished / "recipe.yaml").read_text()


def test_a_run_of_a_sweep_keeps_its_steps(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    (cell, _) = read_matrix(toy_recipe, toy_plugins.catalogue, ["matrix={seed: [0, 1]}"]).cells
    environment = {"recipe": "toy", "plugin_files": [str(tmp_path / "fslplugin.py")]}
    directory = tmp_path / cell.directory_name
    prepare_run(directory, cell.recipe, environment)
    with (
        pytest.raises(RunError, match="a run of a sweep, .* `fsl sweep` with -s outer.steps=20"),
        open_run(directory, CPU, write=True, steps=20),
    ):
        pass


def test_an_unfinished_run_may_become_shorter(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, ["outer.checkpoint_every=1"])
    plugins = [tmp_path / "fslplugin.py"]
    with new_run(tmp_path / "out", recipe, toy_plugins, CPU, plugins) as run:
        toy_plugins.observers.add(EndsAt(7))
        with pytest.raises(OSError, match="ended"):
            train(run)
    assert go_on(tmp_path / "out", 8).step == 8
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["steps"], result["steps_changed"][0]["at"]) == (8, 6)


class EndsAt:
    def __init__(self, step: int):
        self.step = step

    @fsl.hookimpl
    def fsl_step_finished(self, step: int) -> None:
        if step == self.step:
            raise OSError("ended")


def test_a_run_of_no_steps_may_be_trained(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    run_recipe(toy_recipe, toy_plugins, tmp_path / "out", "outer.steps=0")
    run_recipe(toy_recipe, toy_plugins, tmp_path / "whole")
    run = go_on(tmp_path / "out", 12)
    assert ended(tmp_path / "out") == ended(tmp_path / "whole")
    assert run.notes == []
    assert "steps_changed" not in run.records.result()


def test_differences():
    before = {"a": {"b": 1, "c": [1]}, "requires": ["x"], "d": None}
    now = {"a": {"b": 2, "c": [1], "requires": 1}, "expect": {}, "d": None}
    assert list(differences(before, now)) == [
        ("a.b", "1 → 2"),
        ("a.requires", "absent → 1"),
    ]

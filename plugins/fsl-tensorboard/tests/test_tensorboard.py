"""What TensorBoard's own reader finds in the event files of real runs."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import fsl_core as fsl
import fsl_tensorboard
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.run import Run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

RECIPE = """\
episodes: {name: sinusoid, n_shot: 5, n_query: 5}
backbone: {name: mlp, hidden: [8]}
adapter: {name: maml, inner_lr: 0.01, inner_steps: 2}
outer:
  optimizer: {name: adam, lr: 0.01}
  schedule: {name: cosine}
  meta_batch_size: 3
  steps: 12
  validate_every: 5
  validate_episodes: 4
  checkpoint_every: 4
  log_conflict: 6
execution: {mode: loop, workers: 1}
evaluate: {episodes: 6}
"""
CENTROID = """\
episodes: {name: glyphs, n_way: 2, n_shot: 1, n_query: 1}
backbone: {name: conv4, channels: 4}
adapter: {name: nearest-centroid}
outer: {meta_batch_size: 1, steps: 12, validate_every: 5, validate_episodes: 2, checkpoint_every: 4}
execution: {mode: loop, workers: 1}
evaluate: {episodes: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "waves.yaml"
    path.write_text(RECIPE if "maml" in load().catalogue.names("adapter") else CENTROID)
    return path


def run_recipe(recipe: Path, out: Path) -> Run:
    loaded = load()
    with new_run(
        out, read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
    ) as run:
        finish(run)
        return run


def finish(run: Run) -> None:
    train(run)
    run.observers.tell("fsl_run_finished", run=run.view(), result=judge(run))


def read(run: Path):
    """The accumulator of TensorBoard over all event files of a run, with every record kept."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return read.Reload()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(run)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def records(run: Path, split: str | None = None) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line)).get("split") == split]


def text(run: Path, tag: str) -> str:
    (event,) = read(run).Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def assert_curves_are_those_of_the_run(run: Path) -> None:
    found, metric = curves(run), json.loads((run / "result.json").read_text())["metric"]
    for key in ("loss", metric, "lr", "gradient_norm", "seconds"):
        expected = [
            (record["step"], pytest.approx(record[key], rel=1e-6)) for record in records(run)
        ]
        assert len(expected) == 12
        assert found[f"train/{key}"] == expected
    for key in (metric, "interval"):
        expected = [
            (record["step"], pytest.approx(record[key], rel=1e-6))
            for record in records(run, "validation")
        ]
        assert len(expected) == 3
        assert found[f"validation/{key}"] == expected


def test_every_figure_of_a_run_is_there(recipe: Path, tmp_path: Path):
    run_recipe(recipe, tmp_path / "run")
    assert_curves_are_those_of_the_run(tmp_path / "run")
    found, result = (
        curves(tmp_path / "run"),
        json.loads((tmp_path / "run" / "result.json").read_text()),
    )
    metric = result["metric"]
    assert found[f"test/{metric}"] == [(12, pytest.approx(result[metric]))]
    assert found["test/interval"] == [(12, pytest.approx(result["interval"]))]
    written = yaml_of(text(tmp_path / "run", "recipe"))
    assert written == (tmp_path / "run" / "recipe.yaml").read_text()
    summary = text(tmp_path / "run", "result")
    assert (
        f"{metric} {result[metric]:.4f} ± {result['interval']:.4f} (95 % interval, {result['episodes']} episodes)"
        in summary
    )
    assert f"| episode_set | {result['episode_set']} |" in summary


def test_figures_are_there(recipe: Path, tmp_path: Path):
    run_recipe(recipe, tmp_path / "run")
    found = read(tmp_path / "run")
    drawn = {
        "loss",
        "episodes",
        json.loads((tmp_path / "run" / "result.json").read_text())["metric"],
    }
    assert {f"figures/{name}" for name in (*drawn, "worst-episodes")} <= set(found.Tags()["images"])
    (picture,) = found.Images("figures/worst-episodes")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert (image.width, image.height) == (picture.width, picture.height)


@pytest.mark.parametrize("error", [OSError("no data"), KeyboardInterrupt()])
def test_the_file_of_a_run_that_stops_early_is_closed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    from fsl_core import api

    class Stopping:
        @fsl.hookimpl(trylast=True)
        def fsl_step_finished(self, step, run):
            if step == 2:
                kept.append(fsl_tensorboard._files[run.directory]._writer._py_recordio_writer)
                raise error

    kept: list = []
    monkeypatch.setattr(api, "load", lambda **options: loaded)
    loaded = load()
    loaded.observers.add(Stopping())
    with pytest.raises(type(error)):
        fsl.run(recipe, out=tmp_path / "run", device="cpu", progress=False)
    assert tmp_path / "run" not in fsl_tensorboard._files
    assert kept[0]._writer.closed
    assert [step for step, _ in curves(tmp_path / "run")["train/loss"]] == [1, 2]


def yaml_of(markdown: str) -> str:
    return markdown.removeprefix("```yaml\n").removesuffix("```")


def test_conflict_and_inner_steps_are_there(recipe: Path, tmp_path: Path):
    if "maml" not in recipe.read_text():
        pytest.skip("needs an adapter with inner steps")
    run_recipe(recipe, tmp_path / "run")
    found, result = (
        curves(tmp_path / "run"),
        json.loads((tmp_path / "run" / "result.json").read_text()),
    )
    assert [step for step, _ in found["train/gradient_cosine"]] == [1, 7]
    assert [step for step, _ in found["train/gradient_conflict"]] == [1, 7]
    expected = [(k, pytest.approx(result[f"mse_after_{k}"])) for k in range(3)]
    assert found["test/mse_by_inner_step"] == expected


def test_hyperparameters_are_the_options_of_the_recipe(recipe: Path, tmp_path: Path):
    from tensorboard.plugins.hparams import metadata

    run_recipe(recipe, tmp_path / "run")
    content = {
        tag: read(tmp_path / "run").SummaryMetadata(tag).plugin_data.content
        for tag in hparam_tags(tmp_path / "run")
    }
    options = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG]
    ).hparams
    assert options["outer.optimizer.lr"].number_value == pytest.approx(
        read_recipe(recipe, load().catalogue).sections.outer.optimizer.lr
    )
    assert options["backbone.name"].string_value in ("mlp", "conv4")
    assert options["seed"].number_value == 0
    compared = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG]).metric_infos
    assert {info.name.tag for info in compared} <= set(curves(tmp_path / "run"))
    assert len(compared) == 2


def hparam_tags(run: Path) -> list[str]:
    return list(read(run).PluginTagToContent("hparams"))


class StoppedError(Exception):
    """In place of a killed process."""


def stop_at(step: int):
    class Stopping:
        @fsl.hookimpl(trylast=True)
        def fsl_step_finished(self, step, run):
            if step == at:
                raise StoppedError

    at = step
    return Stopping()


@pytest.mark.parametrize("stopped_at", [2, 4, 7])
def test_a_resumed_run_continues_without_repeated_or_missing_steps(
    recipe: Path, tmp_path: Path, stopped_at: int
):
    """Stopped before a checkpoint, at one that is not written yet, and between two."""
    loaded = load()
    loaded.observers.add(stop_at(stopped_at))
    with (
        pytest.raises(StoppedError),
        new_run(
            tmp_path / "run", read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
        ) as run,
    ):
        train(run)
    fsl_tensorboard._files[run.directory].flush()  # steps after the checkpoint are on disk too
    time.sleep(1.01)  # files are named after the second
    with open_run(tmp_path / "run", torch.device("cpu"), write=True) as run:
        run.restore_last()
        assert run.step == (stopped_at - 1) // 4 * 4
        finish(run)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    assert_curves_are_those_of_the_run(tmp_path / "run")
    assert (
        yaml_of(text(tmp_path / "run", "recipe")) == (tmp_path / "run" / "recipe.yaml").read_text()
    )


def test_what_a_checkpoint_counts_is_on_disk_when_the_process_dies(recipe: Path, tmp_path: Path):
    """Nothing is closed or flushed on the way out of this process."""
    script = f"""
import os, torch
from pathlib import Path
import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_core.training.outer_loop import train
from fsl_core.runs.opening import new_run

class Dying:
    @fsl.hookimpl
    def fsl_evaluated(self, run):
        if run.step == 10:
            os._exit(9)

loaded = load()
loaded.observers.add(Dying())
with new_run(Path("run"), read_recipe(Path({str(recipe)!r}), loaded.catalogue), loaded, torch.device("cpu"), []) as run:
    train(run)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 9
    loss = curves(tmp_path / "run")["train/loss"]
    assert [step for step, _ in loss][:8] == list(range(1, 9))


def test_a_run_begun_without_the_plugin_gets_its_history(recipe: Path, tmp_path: Path):
    loaded = load(no_plugin=["tensorboard"])
    loaded.observers.add(stop_at(11))
    with (
        pytest.raises(StoppedError),
        new_run(
            tmp_path / "run", read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
        ) as run,
    ):
        train(run)
    assert not (tmp_path / "run" / "tensorboard").exists()
    with open_run(tmp_path / "run", torch.device("cpu"), write=True) as run:
        run.restore_last()
        finish(run)
    assert_curves_are_those_of_the_run(tmp_path / "run")


def test_the_run_is_the_same_with_and_without_it(recipe: Path, tmp_path: Path):
    run_recipe(recipe, tmp_path / "with")
    loaded = load(no_plugin=["fsl-tensorboard"])
    with new_run(
        tmp_path / "without", read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
    ) as run:
        finish(run)
    weights = [
        (tmp_path / name / "checkpoints" / "last.safetensors").read_bytes()
        for name in ("with", "without")
    ]
    assert weights[0] == weights[1]


def test_a_folder_that_cannot_be_written_ends_the_curves_and_not_the_run(
    recipe: Path, tmp_path: Path
):
    loaded = load()
    with new_run(
        tmp_path / "run", read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
    ) as run:
        (tmp_path / "run" / "tensorboard").write_text("a file in the way")
        with pytest.warns(
            fsl.PluginWarning,
            match=r"plugin tensorboard \(fsl-tensorboard 0.1.0\): fsl_run_started raised FileExists",
        ):
            finish(run)
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here that is always full")
def test_a_full_disk_ends_the_curves_in_one_line_and_not_the_run(recipe: Path, tmp_path: Path):
    """Also where the run is collected, and what is left in the file's buffer with it."""
    loaded = load()
    with new_run(
        tmp_path / "run", read_recipe(recipe, loaded.catalogue), loaded, torch.device("cpu"), []
    ) as run:

        class FillsTheDisk:
            @fsl.hookimpl
            def fsl_step_finished(self, run, step):
                if step == 2:
                    records = fsl_tensorboard._files[run.directory]._writer._py_recordio_writer
                    records._writer.close()
                    records._writer = open("/dev/full", "wb")  # noqa: SIM115 (closed by its owner)

        loaded.observers.add(FillsTheDisk())
        with pytest.warns(fsl.PluginWarning, match="raised OSError.*No space left on") as told:
            finish(run)
    assert len(told) == 1
    assert (tmp_path / "run" / "result.json").is_file()
    del run, told
    gc.collect()  # pytest fails where this prints an exception that nobody caught


def test_it_is_light_until_a_run_begins():
    code = "import sys, fsl_tensorboard; sys.exit(bool({'tensorboardX', 'google.protobuf', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def test_writing_warns_of_nothing(tmp_path: Path):
    code = """
from pathlib import Path
from fsl_tensorboard.events import EventFile
file = EventFile(Path("tensorboard"), 0)
file.scalars("train", {"loss": 0.5}, 1)
file.text("recipe", "text", 0)
file.hyperparameters({"lr": 0.1, "name": "x", "on": True}, {"train/loss": 0.5}, 1)
file.close()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    assert curves(tmp_path) == {"train/loss": [(1, 0.5)]}

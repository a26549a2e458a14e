"""What an MLflow client finds in the store after real runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="mlflow is not installed, so nothing was tracked")
pytest.importorskip("sqlalchemy", reason="mlflow is installed without its sqlite store")

from sqlalchemy import event
from sqlalchemy.engine import Engine

import fsl_core as fsl
import fsl_mlflow

RECIPE = {
    "episodes": {"name": "glyphs", "n_way": 2, "n_shot": 1, "n_query": 2},
    "backbone": {"name": "conv4", "channels": 4},
    "adapter": {"name": "nearest-centroid"},
    "outer": {
        "meta_batch_size": 1,
        "steps": 12,
        "validate_every": 5,
        "validate_episodes": 2,
        "checkpoint_every": 4,
    },
    "execution": {"mode": "loop", "workers": 1},
    "evaluate": {"episodes": 3},
}
SHORT = {"steps": 2, "meta_batch_size": 1, "validate_every": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """An empty sqlite store; its many small transactions need not survive a loss of power."""

    def careless(connection, _) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", careless)
    yield f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    event.remove(Engine, "connect", careless)


@pytest.fixture(autouse=True)
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "FSL_TRACKER": "mlflow",
        "FSL_LOAD_PLUGINS": "mlflow",
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_EXPERIMENT_NAME": tmp_path.name,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return fsl_mlflow.tracked._client()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a report, and with one figure that is not drawn: both take a second."""
    from fsl_core import api

    monkeypatch.setattr(api, "ReportWriter", object)
    monkeypatch.setattr(fsl_mlflow.fsl, "run_figures", lambda run: {"loss": b"PNG"}, raising=False)


def run(out: Path, **changed: object) -> dict:
    return fsl.run({**RECIPE, **changed}, out=out, device="cpu", progress=False).result


def tracked(client, experiment: str):
    """The only run of an experiment."""
    found = client.get_experiment_by_name(experiment)
    (only,) = client.search_runs([found.experiment_id])
    return only


def curve(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def records(run: Path, split: str | None = None) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line)).get("split") == split]


def assert_curves_are_those_of_the_run(client, run_id: str, out: Path) -> None:
    for key in ("loss", "accuracy", "lr", "gradient_norm", "seconds"):
        expected = [(record["step"], record[key]) for record in records(out)]
        assert len(expected) == 12
        assert curve(client, run_id, f"train/{key}") == expected
    expected = [(record["step"], record["accuracy"]) for record in records(out, "validation")]
    assert len(expected) == 3
    assert curve(client, run_id, "validation/accuracy") == expected


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """Raise in the middle of training, after the trackers of that step."""
    from fsl_core import api

    load = api.load

    class Stopping:
        @fsl.hookimpl(trylast=True)
        def fsl_step_finished(self, step):
            if step == at:
                raise error

    def load_with(**options):
        loaded = load(**options)
        loaded.observers.add(Stopping())
        return loaded

    monkeypatch.setattr(api, "load", load_with)


def test_parameters_curves_figures_and_files_are_read_back(client, tmp_path: Path):
    result = run(tmp_path / "run")
    found = tracked(client, tmp_path.name)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "recipe")
    assert found.data.params["outer.optimizer.lr"] == "0.001"
    assert found.data.params["adapter.name"] == "nearest-centroid"
    assert found.data.metrics["test/accuracy"] == result["accuracy"]
    assert found.data.metrics["test/interval"] == result["interval"]
    assert found.data.tags["device"] == "cpu"
    assert_curves_are_those_of_the_run(client, found.info.run_id, tmp_path / "run")
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"recipe.yaml", "result.json", "report.html", "episodes.csv", "figures"} <= names
    figures = {file.path for file in client.list_artifacts(found.info.run_id, "figures")}
    drawn = ("loss", "accuracy", "episodes", "confusion", "worst-episodes")
    assert figures == {f"figures/{name}.png" for name in drawn}
    here = Path(client.download_artifacts(found.info.run_id, "figures/loss.png"))
    assert here.read_bytes().startswith(b"\x89PNG")
    written = Path(client.download_artifacts(found.info.run_id, "recipe.yaml")).read_bytes()
    assert written == (tmp_path / "run" / "recipe.yaml").read_bytes()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("stopped_at", [4, 7])
def test_a_resumed_run_goes_on_without_repeated_or_missing_steps(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
):
    with monkeypatch.context() as patched:
        stop_at(patched, stopped_at, RuntimeError("the disk is gone"))
        with pytest.raises(RuntimeError):
            run(tmp_path / "run")
    found = tracked(client, tmp_path.name)
    assert (found.info.status, found.data.tags["stopped"]) == ("FAILED", "the disk is gone")
    fsl.resume(tmp_path / "run", device="cpu", progress=False)
    found = tracked(client, tmp_path.name)
    assert found.info.status == "FINISHED"
    train = [step for step, _ in curve(client, found.info.run_id, "train/loss")]
    assert train == list(range(1, 13))
    expected = [record["step"] for record in records(tmp_path / "run", "validation")]
    assert [s for s, _ in curve(client, found.info.run_id, "validation/loss")] == expected


@pytest.mark.usefixtures("undrawn")
def test_a_run_begun_without_it_gets_its_history(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.delenv("FSL_TRACKER")
        stop_at(patched, 11, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    assert client.get_experiment_by_name(tmp_path.name) is None
    fsl.resume(tmp_path / "run", device="cpu", progress=False)
    found = tracked(client, tmp_path.name)
    assert_curves_are_those_of_the_run(client, found.info.run_id, tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_is_told_from_one_that_failed(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert tracked(client, tmp_path.name).info.status == "KILLED"


@pytest.mark.usefixtures("undrawn")
def test_the_runs_of_a_sweep_are_one_experiment(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fsl_core.runs.run import Run

    view = Run.view
    of_sweep = {"sweep": f"sweep {tmp_path.name}"}
    monkeypatch.setattr(Run, "view", lambda run: dataclasses.replace(view(run), **of_sweep))
    for seed in (0, 1):
        run(tmp_path / f"run{seed}", seed=seed, outer=SHORT)
    found = client.get_experiment_by_name(f"sweep {tmp_path.name}")
    runs = client.search_runs([found.experiment_id])
    assert sorted(one.data.params["seed"] for one in runs) == ["0", "1"]
    assert {one.data.tags["sweep"] for one in runs} == {f"sweep {tmp_path.name}"}


CALLS = ("create_run", "log_batch", "log_artifacts", "log_artifact", "set_terminated")


@pytest.mark.usefixtures("undrawn")
def test_a_tracker_that_raises_at_any_call_never_touches_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    def refused(*arguments: object, **options: object) -> None:
        raise mlflow.MlflowException("the server is gone")

    for call in CALLS:
        with monkeypatch.context() as patched:
            patched.setattr(mlflow.MlflowClient, call, refused)
            with pytest.warns(fsl.PluginWarning, match="MlflowException: the server is") as told:
                run(tmp_path / call, outer=SHORT)
        assert len(told) == 1
        assert (tmp_path / call / "result.json").is_file()
    monkeypatch.delenv("FSL_TRACKER")
    run(tmp_path / "plain", outer=SHORT)
    weights = {
        (tmp_path / name / "checkpoints" / "last.safetensors").read_bytes()
        for name in (*CALLS, "plain")
    }
    assert len(weights) == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore:FSL_TRACKER=wandb:fsl_core.errors.PluginWarning")
def test_nothing_is_tracked_unless_it_is_named(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FSL_TRACKER", "wandb")
    run(tmp_path / "run")
    assert client.get_experiment_by_name(tmp_path.name) is None
    assert not (tmp_path / "run" / "mlflow.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_without_a_server_the_store_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run(tmp_path / "run", outer=SHORT)
    assert (tmp_path / "mlflow.db").is_file()


def test_it_is_light_until_a_run_begins():
    code = "import sys, fsl_mlflow; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    environment = {**os.environ, "FSL_TRACKER": "mlflow"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == 0

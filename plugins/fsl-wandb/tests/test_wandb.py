"""What the libraries are told, and what they wrote on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import fsl_core as fsl
import fsl_wandb
from fsl_core import api

# Other trackers that are named need not be installed here.
pytestmark = pytest.mark.filterwarnings("ignore:FSL_TRACKER=mlflow:fsl_core.errors.PluginWarning")

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


class Library(ModuleType):
    """A stand-in of Weights & Biases and of Trackio: it keeps what it is told.

    fails: the name of a call that raises.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.told: list[dict] = []
        self.history: list[tuple[int, dict]] = []
        self.artifacts: list[list[str]] = []
        self.ended: list[dict] = []
        self.fails = ""
        self.key = False
        library = self

        class Artifact:
            def __init__(self, name: str, type: str):
                self.files: list[str] = []

            def add_file(self, path: str) -> None:
                library.called("add_file")
                self.files.append(Path(path).name)

        self.Artifact = Artifact

    def called(self, what: str) -> None:
        if what == self.fails:
            raise ConnectionError("the server is gone")

    def init(self, **options: object) -> Library:
        self.called("init")
        print("a library that talks")
        self.told.append(options)
        return self

    def log(self, values: dict, step: int) -> None:
        self.called("log")
        self.history.append((step, values))

    def log_artifact(self, artifact) -> None:
        self.called("log_artifact")
        self.artifacts.append(artifact.files)

    def finish(self, **options: object) -> None:
        self.called("finish")
        self.ended.append(options)

    def login(self, prompt: bool) -> bool:
        assert prompt is False
        return self.key

    def Image(self, path: str) -> bytes:  # noqa: N802 (as the libraries call it)
        return Path(path).read_bytes()

    def Settings(self, **options: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(**options)

    def steps(self, key: str) -> list[int]:
        return [step for step, values in self.history if key in values]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "wandb")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["wandb", "trackio"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Runs are tracked by a stand-in, and draw nothing, which takes a second."""
    made = Library(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    monkeypatch.setenv("FSL_TRACKER", f"mlflow,{request.param}")
    monkeypatch.setattr(api, "ReportWriter", object)
    monkeypatch.setattr(fsl_wandb.fsl, "run_figures", lambda run: {"loss": b"PNG"}, raising=False)
    return made


def run(out: Path, **changed: object) -> dict:
    return fsl.run({**RECIPE, **changed}, out=out, device="cpu", progress=False).result


def records(run: Path, split: str | None = None) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line)).get("split") == split]


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
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


def test_options_curves_figures_and_files_are_told(library: Library, tmp_path: Path, capsys):
    result = run(tmp_path / "run")
    (told,) = library.told
    assert told["config"]["outer.optimizer.lr"] == 0.001
    assert (told["project"], told["group"], told["resume"]) == ("fsl", None, "allow")
    assert [(s, v["train/loss"]) for s, v in library.history if "train/loss" in v] == [
        (record["step"], record["loss"]) for record in records(tmp_path / "run")
    ]
    assert library.steps("validation/accuracy") == [5, 10, 12]
    (test,) = [values for _, values in library.history if "test/accuracy" in values]
    assert test["test/accuracy"] == result["accuracy"]
    assert test["test/interval"] == result["interval"]
    assert library.history[-1] == (12, {"figures/loss": b"PNG"})
    assert library.artifacts == [["recipe.yaml", "environment.json", "episodes.csv", "result.json"]]
    assert library.ended == ([{"exit_code": 0}] if library.__name__ == "wandb" else [{}])
    assert capsys.readouterr().out == ""  # `fsl run --json` prints JSON alone


@pytest.mark.parametrize("stopped_at", [4, 7])
def test_a_resumed_run_goes_on_without_repeated_or_missing_steps(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
):
    with monkeypatch.context() as patched:
        stop_at(patched, stopped_at, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    if library.__name__ == "wandb":
        assert library.ended == [{"exit_code": 130}]
    fsl.resume(tmp_path / "run", device="cpu", progress=False)
    assert library.steps("train/loss") == list(range(1, 13))
    assert library.steps("validation/loss") == [5, 10, 12]
    first, second = library.told
    assert [first.get("id"), first["name"]] == [second.get("id"), second["name"]]


def test_a_sweep_is_a_group(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fsl_core.runs.run import Run

    view = Run.view
    monkeypatch.setattr(Run, "view", lambda run: dataclasses.replace(view(run), sweep="seeds"))
    run(tmp_path / "run", outer=SHORT)
    assert library.told[0]["group"] == "seeds"


def test_a_tracker_that_raises_at_any_call_never_touches_the_run(library: Library, tmp_path: Path):
    for library.fails in ("init", "log", "add_file", "log_artifact", "finish"):
        with pytest.warns(fsl.PluginWarning, match="ConnectionError: the server is gone") as told:
            run(tmp_path / library.fails, outer=SHORT)
        assert ["the server is gone" in str(one.message) for one in told].count(True) == 1
        assert (tmp_path / library.fails / "result.json").is_file()


def test_one_that_is_absent_is_named(library: Library, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, library.__name__, None)
    told = rf"is not installed. pip install 'fsl-wandb\[{library.__name__}\]'"
    with pytest.warns(fsl.PluginWarning, match=told):
        run(tmp_path / "run", outer=SHORT)


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
@pytest.mark.parametrize(
    ("key", "named", "mode"),
    [(False, "", "offline"), (True, "", "online"), (True, "offline", "offline")],
)
def test_without_a_key_it_is_offline_and_asks_nothing(
    library: Library, tmp_path: Path, monkeypatch, key: bool, named: str, mode: str
):
    library.key = key
    monkeypatch.setenv("WANDB_MODE", named)
    run(tmp_path / "run", outer=SHORT)
    assert library.told[0]["mode"] == mode


def test_nothing_is_tracked_unless_it_is_named(library: Library, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("FSL_TRACKER")
    run(tmp_path / "run", outer=SHORT)
    assert library.told == []
    assert not list((tmp_path / "run").glob(f"{library.__name__}*"))


def test_weights_and_biases_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip(
        "wandb", reason="wandb is not installed, so a stand-in alone was told"
    )
    monkeypatch.setenv("FSL_TRACKER", "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run(tmp_path / "run")
    wandb.teardown()  # its own process writes on after a run ended; a user's ends as Python does
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    found = list(kept(file.read_bytes()))
    rows = [history(record) for record in found if record.HasField("history")]
    assert [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (record["step"], record["loss"]) for record in records(tmp_path / "run")
    ]
    assert rows[-1]["test/accuracy"] == result["accuracy"]
    drawn = {name: value["_type"] for name, value in rows[-1].items() if "figures" in name}
    assert drawn["figures/worst-episodes"] == "image-file"
    config = {i.key: i.value_json for record in found for i in record.run.config.update}
    assert config["outer.steps"] == "12"
    assert len([r for r in found if r.HasField("exit") and r.exit.exit_code == 0]) == 1


def kept(log: bytes) -> Iterator:
    """The records of an offline run: protobuf in the blocks of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    at, whole = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, size, kind = struct.unpack_from("<IHB", log, at)
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(record) -> dict:
    row: dict = {}
    for item in record.history.item:
        first, *rest = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if rest:
            row.setdefault(first, {})[rest[0]] = value
        else:
            row[first] = value
    return row


def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed, so a stand-in alone was told")
    import trackio

    monkeypatch.setenv("FSL_TRACKER", "trackio")
    monkeypatch.setenv("TRACKIO_PROJECT", "test")
    run(tmp_path / "run")
    (found,) = trackio.Api().runs("test")
    assert found.name.startswith("recipe ")


def test_it_is_light_until_a_run_begins():
    code = "import sys, fsl_wandb; sys.exit(bool({'wandb', 'trackio', 'torch'} & set(sys.modules)))"
    environment = {**os.environ, "FSL_TRACKER": "wandb,trackio"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == 0

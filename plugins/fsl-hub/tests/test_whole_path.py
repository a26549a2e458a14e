"""One run from beginning to end: trained, tracked with MLflow and TensorBoard, pushed to a stand-in
of the hub, and predicted from there, by the commands of docs/sharing.md."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub is not installed, so the path has a gap"
)
pytest.importorskip("mlflow", reason="mlflow is not installed, so the path has a gap")
pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed, so the path has a gap")
pytest.importorskip("tensorboardX", reason="tensorboardX is not installed, so the path has a gap")
pytest.importorskip("tensorboard", reason="tensorboard is not installed, so the path has a gap")

from sqlalchemy import event
from sqlalchemy.engine import Engine

from fsl_core.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "sharing.md"
RECIPE = {
    "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 2, "n_query": 2},
    "backbone": {"name": "conv4", "channels": 4},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"meta_batch_size": 2, "steps": 4, "validate_every": 2, "validate_episodes": 2},
    "execution": {"mode": "loop", "workers": 1},
    "evaluate": {"episodes": 6},
}


@pytest.fixture(autouse=True)
def _quick_store():
    """The many small transactions of a new sqlite store need not survive a loss of power."""

    def careless(connection, _) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", careless)
    yield
    event.remove(Engine, "connect", careless)


def as_ada(command: str) -> str:
    """With the user of the stand-in, and the folder for the words in capitals."""
    return re.sub(r"\b[A-Z]{2,}\b", "pictures", command.replace("user/", "ada/"))


def draw(folder: Path) -> None:
    for label in range(3):
        for number in range(3):
            sheet = np.zeros((28, 28), dtype=np.uint8)
            sheet[4 : 8 + 6 * label, 6 + number : 9 + 7 * label] = 255
            file = folder / f"class{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(file)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own
def test_trained_tracked_pushed_and_predicted(hub, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "hub,mlflow,tensorboard")
    monkeypatch.setenv("FSL_TRACKER", "mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def fsl(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["fsl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, told = capfd.readouterr()
        assert not ended.value.code, told
        return out

    Path("recipe.yaml").write_text(json.dumps(RECIPE))
    run = Path("runs/5w1s-maml")
    fsl("run", "recipe.yaml", "--out", run)
    result = json.loads((run / "result.json").read_text())

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fsl")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/accuracy"] == result["accuracy"]
    assert "figures" in {file.path for file in client.list_artifacts(tracked.info.run_id)}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert board.Scalars("test/accuracy")[-1].value == pytest.approx(result["accuracy"])
    assert "figures/worst-episodes" in board.Tags()["images"]

    draw(Path("pictures"))
    push, predict = re.findall(r"^fsl (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    fsl(*shlex.split(as_ada(push)))
    fsl(*shlex.split(as_ada(predict)), "--out", "there.csv")
    fsl("predict", run, "--support", "pictures", "--query", "pictures", "--out", "here.csv")
    assert Path("there.csv").read_text() == Path("here.csv").read_text()
    with Path("there.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9

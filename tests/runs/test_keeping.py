"""`fsl keep`: what tells of a run, in little room; and what it still serves for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fsl_core.errors import RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting.scores import read_scores
from fsl_core.runs.keeping import keep_run, thin
from tests.parts.command_line import Call


@pytest.fixture
def kept(in_process: Call, toy_recipe: Path, tmp_path: Path) -> Path:
    assert in_process("run", "toy.yaml", "--out", "run").code == 0
    assert "KiB kept" in in_process("keep", "run", "--out", "kept/toy").out
    return tmp_path / "kept" / "toy"


def test_what_is_kept_tells_of_the_run(kept: Path, in_process: Call):
    names = {"recipe.yaml", "environment.json", "result.json", "episodes.csv", "metrics.jsonl"}
    assert {file.name for file in kept.iterdir()} == names
    run = kept.parent.parent / "run"
    assert (read_scores(kept).scores == read_scores(run).scores).all()
    assert str(run.parent) not in "".join(file.read_text() for file in kept.iterdir())
    environment = json.loads((kept / "environment.json").read_text())
    assert list(environment["plugin_files"]) == ["fslplugin.py"]
    assert environment["processor"]
    assert "second minus first: +0.0000" in in_process("compare", str(run), str(kept)).out


def test_a_kept_run_is_reproduced_from_what_is_kept(kept: Path, in_process: Call):
    local = ("--plugins-dir", str(kept.parent.parent))
    done = in_process("reproduce", str(kept), *local)
    assert done.code == 0
    assert re.search(r"reproduced: accuracy (0\.\d+), expected 0.975 ± 0.049", done.out)
    other = in_process("reproduce", str(kept), *local, "-s", "episodes.spread=9.0")
    assert other.code == 1
    assert "NOT reproduced" in other.out


def test_thinned_metrics_are_means_with_every_validation():
    records = [{"step": s, "loss": float(s % 7), "seconds": 0.5} for s in range(1, 1051)]
    check = {"step": 500, "split": "validation", "accuracy": 0.5, "interval": 0.1}
    found = thin([*records[:500], check, *records[500:]])
    training = [record for record in found if record is not check]
    assert check in found
    assert 95 <= len(training) <= 105
    assert training[-1]["step"] == 1050
    mean = sum(record["loss"] for record in training) / len(training)
    assert mean == pytest.approx(sum(r["loss"] for r in records) / 1050, abs=0.1)
    assert thin(records[:3]) == records[:3]


def test_what_cannot_be_kept_is_refused(kept: Path, toy_plugins: Loaded, tmp_path: Path):
    with pytest.raises(RunError, match=r"not empty\. A new folder for --out"):
        keep_run(tmp_path / "run", kept)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(RunError, match=r"run/result\.json: No such file"):
        keep_run(tmp_path / "run", tmp_path / "other")
    assert not (tmp_path / "other").exists()

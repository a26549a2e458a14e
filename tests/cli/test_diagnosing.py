"""`fsl reuse` and `fsl patterns`: their files, their lines, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.parts.command_line import Call

for plugin in ("fsl_maml", "fsl_wormhole"):
    pytest.importorskip(plugin)
RECIPE = {
    "episodes": {"name": "random-networks", "n_query": 150},
    "backbone": {"name": "mlp", "hidden": [6, 5]},
    "adapter": {"name": "maml", "inner_steps": 2},
    "outer": {"steps": 2, "meta_batch_size": 2},
    "evaluate": {"episodes": 4},
    "execution": {"mode": "loop"},
}


@pytest.fixture(autouse=True)
def _plugins(in_process: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "maml,wormhole")


@pytest.fixture
def run(in_process: Call, tmp_path: Path) -> Path:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE))
    ended = in_process("run", recipe, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def test_reuse_writes_a_table_a_figure_and_json(in_process: Call, run: Path):
    ended = in_process("reuse", run, "--episodes", "3")
    assert ended.code == 0, ended.err
    assert "layers.1: cka " in ended.out
    assert "scores, nearest class mean: a regression has no classes" in ended.out
    told = json.loads((run / "reuse.json").read_text())
    (of_run,) = told["runs"].values()
    assert {row["layer"] for row in of_run["layers"]} == {"layers.0", "layers.1"}
    assert of_run["scores"]["nearest class mean"]["reason"] == "a regression has no classes"
    rows = list(csv.DictReader((run / "reuse.csv").read_text().splitlines()))
    assert {row["measure"] for row in rows} >= {"cka", "pwcca", "mse"}
    drawn = (run / "reuse.svg").read_text()
    assert drawn.startswith("<svg")
    lines = re.findall(r">([^<]*)</(?:text|tspan)>", drawn)
    told = [line for line in lines if re.search(r"\d\.\d{3}", line)]
    assert "as adapted" in " ".join(told)
    assert max(map(len, told)) <= 48  # a longer line is cut at both ends


def test_reuse_of_two_runs_needs_a_folder(in_process: Call, run: Path, tmp_path: Path):
    ended = in_process("reuse", run, tmp_path)
    assert ended.code == 2
    assert ended.err == "fsl reuse: 2 runs. --out DIR for their files\n"


def test_few_items_are_null_with_the_reason(in_process: Call, run: Path):
    ended = in_process("reuse", run, "--episodes", "2", "--n-query", "2", "--json")
    (of_run,) = json.loads(ended.out)["runs"].values()
    nulls = [row for row in of_run["layers"] if row["mean"] is None]
    assert nulls
    assert all(row["reason"].startswith("2 items") for row in nulls)


def test_the_recipe_of_a_pattern_scores_as_was_measured(
    in_process: Call, run: Path, tmp_path: Path
):
    ended = in_process(
        "patterns", run, "--within", "1e9", "--episodes", "4", "--split", "test", "--beam", "2"
    )
    assert ended.code == 0, ended.err
    assert "chosen: " in ended.out
    told = json.loads((run / "patterns.json").read_text())
    chosen = next(row for row in told["patterns"] if row["pattern"] == told["chosen"])
    assert chosen["seconds"] == min(row["seconds"] for row in told["patterns"])
    recipe = YAML(typ="safe").load((run / "pattern.yaml").read_text())
    assert recipe["adapter"]["test_adapted"] == chosen["option"]
    assert recipe["adapter"]["test_steps"] == chosen["steps"]
    ended = in_process("run", run / "pattern.yaml", "--out", tmp_path / "again", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["mse"] == pytest.approx(chosen["mse"], rel=1e-6)


def test_patterns_need_an_adapter_with_the_option(in_process: Call, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE | {"adapter": {"name": "wormhole", "inner_steps": 1}}))
    assert in_process("run", recipe, "--out", tmp_path / "run").code == 0
    ended = in_process("patterns", tmp_path / "run", "--episodes", "2", "--beam", "0")
    assert ended.code == 2
    assert "adapter 'wormhole': no option test_adapted, so a pattern cannot be written" in ended.err


def test_an_unknown_split_is_refused(in_process: Call, run: Path):
    ended = in_process("patterns", run, "--split", "dev")
    assert (ended.code, ended.err) == (
        2,
        "--split dev: no such split. One of train, validation, test\n",
    )

"""Files of ours with something else in them: one line that names the file, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fsl_core.config.recipe import read_recipe
from fsl_core.errors import FslError
from fsl_core.hooks.loader import Loaded
from fsl_core.predicting.adapting import load_predictor
from fsl_core.reporting.scores import read_scores
from fsl_core.runs import checkpoints
from fsl_core.runs.files import check_files
from fsl_core.runs.opening import new_run, open_run
from fsl_core.sweeping.jobs import last_step
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
SHORT = ["outer.steps=2", "outer.validate_every=2", "evaluate.episodes=4"]
REMOVED = object()

NOT_JSON = {
    "empty": b"",
    "cut": b'{"recipe": "toy", "metr',
    "words": b"accuracy 0.9",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"recipe": "toy"}'.encode("utf-16"),
    "latin-1": b'{"recipe": "\xe9t\xe9"}',
    "zeros": bytes(300),
    "twice": b'{"recipe": "a", "recipe": "b"}',
    "deep": b"[" * 100_000,
    "nested": b'{"a": ' * 80 + b"1" + b"}" * 80,
    "digits": b'{"recipe": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"recipe": "\\ud800"}',
    "long": b'{"a": "' + b"x" * 17 * 2**20 + b'"}',
}
NOT_OBJECTS = {"null": None, "list": [], "number": 3, "text": "text", "true": True, "nothing": {}}


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, made once."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    if not finished.exists():
        recipe = read_recipe(toy_recipe, toy_plugins.catalogue, SHORT)
        with new_run(finished, recipe, toy_plugins, CPU, []) as made:
            train(made)
            judge(made)
    shutil.copytree(finished, tmp_path / "run")
    environment = json.loads((finished / "environment.json").read_text())
    changed = {**environment, "plugin_files": toy_plugins.files}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(changed))
    return tmp_path / "run"


def use(directory: Path) -> None:
    """Whatever a command reads of a finished run."""
    read_scores(directory)
    check_files(directory)
    with open_run(directory, CPU, write=True) as opened:
        opened.records.result()
        opened.restore_for_evaluation()
        opened.restore_last()


def refusal(operation: Callable[[], Any], *words: str) -> str:
    with pytest.raises(FslError) as raised:
        operation()
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 600
    assert text.isprintable()
    for word in words:
        assert word in text
    return text


RECORDS = ["environment.json", "execution.json", "result.json"]


@pytest.mark.parametrize("damage", [*NOT_JSON, *NOT_OBJECTS])
@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_not_such(run: Path, name: str, damage: str):
    content = NOT_JSON.get(damage)
    plain = json.dumps(NOT_OBJECTS[damage]).encode() if content is None else content
    (run / name).write_bytes(plain)
    refusal(lambda: use(run), f"run/{name}: ")


CHANGES: list[tuple[str, str, Any, str]] = [
    ("environment.json", "recipe", REMOVED, "no 'recipe'"),
    ("environment.json", "recipe", ["toy"], "'recipe' holds a list"),
    ("environment.json", "plugin_files", "x.py", "'plugin_files' holds \"x.py\""),
    ("environment.json", "plugin_files", [3], "'plugin_files' holds a list"),
    ("environment.json", "plugin_files", {"/x.py": 3}, "'plugin_files./x.py' holds 3"),
    ("environment.json", "plugin_files", {"/\x1b[2J.py": ""}, "'/\\x1b[2J.py' is missing"),
    ("execution.json", "mode", "fast", "'mode' holds \"fast\""),
    ("execution.json", "workers", 0, "'workers' holds 0"),
    ("execution.json", "workers", 10**9, "'workers' holds 1000000000"),
    ("execution.json", "workers", True, "'workers' holds true"),
    ("execution.json", "chunk", 1.5, "'chunk' holds 1.5"),
    ("execution.json", "chunk", -3, "'chunk' holds -3"),
    ("execution.json", "seconds_measured", [1], "'seconds_measured' holds a list"),
    ("execution.json", "reason", REMOVED, "no 'reason'"),
    ("result.json", "metric", "mse", "no number 'mse', which is its metric"),
    ("result.json", "metric", {}, "'metric' holds an object"),
    ("result.json", "accuracy", "0.9", "no number 'accuracy'"),
    ("result.json", "accuracy", True, "no number 'accuracy'"),
    ("result.json", "accuracy", 10**400, "no number 'accuracy'"),
    ("result.json", "accuracy_after_1", "0.5", "'accuracy_after_1' holds \"0.5\""),
    ("result.json", "interval", None, "'interval' holds null"),
    ("result.json", "episodes", 1e300, "'episodes' holds 1e+300"),
    ("result.json", "episodes", -4, "'episodes' holds -4"),
    ("result.json", "episodes", 10**40, "'episodes' holds 1000000"),
    ("result.json", "episode_set", 7, "'episode_set' holds 7"),
    ("result.json", "training_seconds", REMOVED, "no 'training_seconds'"),
    ("result.json", "checkpoint_step", "last", "'checkpoint_step' holds \"last\""),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), CHANGES)
def test_records_with_another_value(run: Path, name: str, key: str, value: Any, message: str):
    data = json.loads((run / name).read_text())
    if value is REMOVED:
        del data[key]
    else:
        data[key] = value
    (run / name).write_text(json.dumps(data))
    refusal(lambda: use(run), f"run/{name}: ", message)


LINES = {
    "null": "null",
    "list": "[1]",
    "no step": '{"loss": 1}',
    "text": '{"step": "1", "loss": 1}',
    "true": '{"step": true, "loss": 1}',
    "object": '{"step": 1, "loss": {}}',
    "name": '{"step": 1, "loss": "\\u001b[2J"}',
    "huge": '{"step": 1, "loss": 1' + "0" * 400 + "}",
    "split": '{"step": 1, "split": 3}',
    "deep": "[" * 3000,
    "cut": '{"step": 1, "lo',
}


@pytest.mark.parametrize("line", LINES)
def test_lines_of_metrics_that_are_no_records(run: Path, line: str):
    """`fsl report` names them; a resume, as after a kill, leaves them out."""
    metrics = run / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write(LINES[line] + "\n")
    refusal(lambda: check_files(run), "run/metrics.jsonl: line 4 is not a record of training")
    assert last_step(metrics) == 2
    with open_run(run, CPU, write=True) as opened:
        opened.restore_last()
    assert len(metrics.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "table",
    [
        "",
        "episode,loss\n0,1\n",
        "episode,accuracy\n0\n",
        "accuracy\nx\n",
        "accuracy\n0.1\n",
        "accuracy\nnan\nnan\nnan\nnan\n",
        "\x00",
        'accuracy\n"' + "x" * 200000,
        "ÿ",
    ],
)
def test_tables_that_are_not_those_of_the_result(run: Path, table: str):
    (run / "episodes.csv").write_bytes(table.encode("latin-1"))
    refusal(lambda: read_scores(run), "run/episodes.csv: ")


def damage(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Write a checkpoint again after a change of its tensors and its record."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = json.loads(file.metadata()["fsl"])
    changed = change(tensors, record)
    record = record if changed is None else changed
    save_file(tensors, path, {"fsl": record if isinstance(record, str) else json.dumps(record)})


def set_(table: Any, *path: Any) -> None:
    *keys, last, value = path
    for key in keys:
        table = table[key]
    table[last] = value


WEIGHT, MOMENT = "learner.backbone.layers.0.0.weight", "optimizer.0.exp_avg"

CHECKPOINTS: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "null": (lambda t, r: "null", "damaged checkpoint (null, not a JSON object). Move it away"),
    "list": (lambda t, r: "[]", "damaged checkpoint (a list, not a JSON object)"),
    "empty": (lambda t, r: " ", "damaged checkpoint (not JSON: Expecting value (line 1))"),
    "deep": (lambda t, r: "[" * 100_000, "damaged checkpoint (not JSON of ours: too many brackets"),
    "no progress": (lambda t, r: r.pop("progress") and None, "(no 'progress')"),
    "progress": (lambda t, r: set_(r, "progress", 3), "('progress' holds 3)"),
    "no step": (lambda t, r: set_(r, "progress", {}), "last.safetensors: no 'step'"),
    "step": (lambda t, r: set_(r, "progress", "step", "2"), "'step' holds \"2\""),
    "true": (lambda t, r: set_(r, "progress", "step", True), "'step' holds true"),
    "negative": (lambda t, r: set_(r, "progress", "step", -1), "'step' holds -1"),
    "beyond": (lambda t, r: set_(r, "progress", "step", 9), "step 9, and the recipe has 2"),
    "best": (lambda t, r: set_(r, "progress", "best", [1]), "'best' holds a list"),
    "score": (lambda t, r: set_(r, "progress", "best", {"step": 1}), "no 'best.score'"),
    "no optimizer": (lambda t, r: set_(r, "optimizer", []), "'optimizer' holds a list"),
    "no groups": (lambda t, r: set_(r, "optimizer", "groups", []), "optimizer: other groups of"),
    "groups": (lambda t, r: set_(r, "optimizer", "groups", 0, "params", [0]), "other groups of"),
    "lr": (lambda t, r: set_(r, "optimizer", "groups", 0, "lr", "x"), "'lr' is 'x', not 0.01"),
    "nan": (lambda t, r: set_(r, "optimizer", "groups", 0, "lr", float("nan")), "'lr' is nan, not"),
    "betas": (lambda t, r: set_(r, "optimizer", "groups", 0, "betas", [1]), "'betas' is [1], not"),
    "foreach": (lambda t, r: set_(r, "optimizer", "groups", 0, "amsgrad", 1), "'amsgrad' is 1"),
    "scalars": (lambda t, r: set_(r, "optimizer", "scalars", {"0": {"x": []}}), "'x' of parameter"),
    "index": (lambda t, r: set_(r, "optimizer", "scalars", {"-1": {"x": 1}}), "parameter '-1', of"),
    "float64": (
        lambda t, r: set_(t, WEIGHT, t[WEIGHT].double()),
        "torch.float64, not torch.float3",
    ),
    "integers": (lambda t, r: set_(t, WEIGHT, t[WEIGHT].int()), "torch.int32, not torch.float32"),
    "not finite": (lambda t, r: set_(t, WEIGHT, t[WEIGHT] * torch.inf), "weight is not finite"),
    "shape": (lambda t, r: set_(t, WEIGHT, t[WEIGHT][:1]), "size mismatch for backbone.layers.0"),
    "weight gone": (lambda t, r: t.pop(WEIGHT) is None or None, "Missing key(s) in state_dict: "),
    "one too many": (
        lambda t, r: set_(t, "learner.x", torch.ones(1)),
        "Unexpected key(s) in state",
    ),
    "stranger": (lambda t, r: set_(t, "evil.x", torch.ones(1)), "'evil.x' belongs to no part of a"),
    "moment gone": (
        lambda t, r: t.pop(MOMENT) is None or None,
        "'exp_avg' of parameter 0 is absent",
    ),
    "moment more": (
        lambda t, r: set_(t, "optimizer.0.x", torch.ones(1)),
        "'x' of parameter 0 is not",
    ),
    "moment type": (
        lambda t, r: set_(t, MOMENT, t[MOMENT].half()),
        "torch.float16 of shape (8, 2)",
    ),
    "moment shape": (
        lambda t, r: set_(t, MOMENT, t[MOMENT][0]),
        "float32 of shape (2,), not torch",
    ),
    "moment of none": (lambda t, r: set_(t, "optimizer.77.x", torch.ones(1)), "parameter '77', of"),
    "moment name": (
        lambda t, r: set_(t, "optimizer.\u0663.x", torch.ones(1)),
        "state of parameter",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints_with_something_else_in_them(run: Path, case: str):
    path = run / "checkpoints" / "last.safetensors"
    change, message = CHECKPOINTS[case]
    damage(path, change)
    with open_run(run, CPU, write=True) as opened:
        refusal(opened.restore_last, "run/checkpoints/last.safetensors: ", message)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08" + bytes(7) + b"null    ",
        b"\xff" * 64,
        b"\x02" + bytes(7) + b"{}",
        b"PK\x03\x04",
    ],
    ids=["empty", "null", "header", "no metadata", "zip"],
)
def test_files_that_are_no_checkpoints(run: Path, content: bytes):
    path = run / "checkpoints" / "last.safetensors"
    path.write_bytes(content)
    with open_run(run, CPU, write=True) as opened:
        refusal(opened.restore_last, "last.safetensors: damaged checkpoint (", "Move it away: ")


def test_weights_that_are_not_finite_are_not_saved(run: Path):
    """A step may end so although its loss was finite."""
    with open_run(run, CPU, write=True) as opened:
        opened.restore_last()
        next(opened.experiment.learner.parameters()).data[0] = torch.nan
        before = opened.records.path("last").read_bytes()
        refusal(
            lambda: opened.save("last"), "outer step 2: learner.backbone.layers.0.0.weight is no"
        )
        assert opened.records.path("last").read_bytes() == before


SAVED = {
    "classes": ["a", "b"],
    "found": [1, 1],
    "invert": False,
    "plugin_files": {},
    "recipe": "episodes: {name: glyphs, n_way: 2, n_shot: 1, n_query: 1}\n"
    "backbone: {name: conv4, channels: 4}\nadapter: {name: nearest-centroid}\nouter: {steps: 1}\n",
}
PICTURES = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)

PREDICTORS: dict[str, tuple[str, Any, str]] = {
    "no classes": ("classes", [], "'classes' holds a list"),
    "classes": ("classes", "ab", "'classes' holds \"ab\""),
    "more classes": ("classes", ["a", "b", "c"], "'found' is not one number for each class"),
    "found": ("found", [1, "1"], "'found.1' holds \"1\""),
    "invert": ("invert", 1, "'invert' holds 1"),
    "no recipe": ("recipe", REMOVED, "no 'recipe'"),
    "recipe": ("recipe", 3, "'recipe' holds 3"),
    "empty": ("recipe", "", "kept: recipe:1: empty. A mapping of sections"),
    "bomb": ("recipe", "a: " + "[" * 1000, "kept: recipe:1: more than 50 lists and mappings"),
    "files": ("plugin_files", [["x"]], "'plugin_files' holds "),
    "path": ("plugin_files", ["x.py"], "kept: one-file plugin 'x.py' is not an absolute path"),
    "flat": ("support", torch.zeros(2, 28, dtype=torch.uint8), "'support' holds no pictures"),
    "none": ("support", PICTURES[:0], "'support' holds no pictures"),
    "support": ("support", REMOVED, "no 'support'"),
    "float": ("support", PICTURES.float(), "labelled pictures of torch.float32, shape (2, 1, 28"),
    "size": (
        "support",
        PICTURES[:, :, :9, :9].clone(),
        "shape (2, 1, 9, 9), which are not 2 times",
    ),
    "odd": ("support", torch.cat([PICTURES, PICTURES[:1]]), "shape (3, 1, 28, 28), which are not"),
    "weights": ("learner.x", torch.ones(1), "its weights do not fit the plugins installed: "),
}


@pytest.mark.parametrize("case", PREDICTORS)
def test_predictors_with_something_else_in_them(tmp_path: Path, case: str):
    key, value, message = PREDICTORS[case]
    record, tensors = {**SAVED}, {"support": PICTURES}
    table = tensors if key == "support" or isinstance(value, torch.Tensor) else record
    table.pop(key, None)
    if value is not REMOVED:
        table[key] = value
    save_file(tensors, tmp_path / "kept", {"fsl-predictor": json.dumps(record)})
    refusal(lambda: load_predictor(tmp_path / "kept"), "kept", message)


@pytest.mark.parametrize("damage", [*NOT_JSON, *NOT_OBJECTS])
def test_predictors_whose_record_is_not_such(tmp_path: Path, damage: str):
    content = NOT_JSON[damage].decode("utf-8", "replace") if damage in NOT_JSON else ""
    text = content if damage in NOT_JSON else json.dumps(NOT_OBJECTS[damage])
    save_file({"support": PICTURES}, tmp_path / "kept", {"fsl-predictor": text})
    refusal(lambda: load_predictor(tmp_path / "kept"), "kept: not a whole file of `fsl predict")


def test_an_absent_file_is_not_called_damaged(run: Path, tmp_path: Path):
    (run / "checkpoints" / "best.safetensors").unlink()
    (run / "checkpoints" / "last.safetensors").unlink()
    with open_run(run, CPU, write=False) as opened:
        text = refusal(opened.restore_for_evaluation, "last.safetensors: no such checkpoint. ")
    assert "damaged" not in text
    refusal(lambda: load_predictor(tmp_path / "absent"), "absent: ", "No such file or directory")
    (run / "environment.json").unlink()
    refusal(lambda: check_files(run), "environment.json: No such file")


def test_what_is_told_of_a_result_never_breaks(call, run: Path):
    """Figures that a run may have, however bad: shown, not refused."""
    data = json.loads((run / "result.json").read_text())
    data |= {"loss": float("nan"), "interval": float("inf"), "norm": "\x07red", "extra": [[]]}
    (run / "result.json").write_text(json.dumps(data))
    ended = call("resume", "run")
    assert ended.code == 0
    assert "norm \\x07red, " in ended.out
    assert call("report", "run").code == 0


@pytest.mark.parametrize("ends", ["an error", "what the old file said"])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run in training does so. Seen as the error once, on a busy machine."""
    file, other = tmp_path / "last.safetensors", tmp_path / "other"
    save_file({"a": torch.zeros(2)}, file, {"is": "old"})
    save_file({"a": torch.ones(90)}, other, {"is": "new"})

    def meanwhile(path: Path, framework: str):
        opened = safe_open(path, framework=framework)
        if other.exists():
            os.replace(other, file)
            if ends == "an error":
                raise RuntimeError("size <1360> is smaller than the required mapping size <1376>")
        return opened

    monkeypatch.setattr(checkpoints, "safe_open", meanwhile)
    tensors, metadata = checkpoints.read_tensors(file)
    assert (len(tensors["a"]), metadata) == (90, {"is": "new"})


def test_a_checkpoint_that_cannot_be_mapped_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_file({"a": torch.zeros(2)}, tmp_path / "last.safetensors")

    def refuses(*_: object, **__: object):
        raise RuntimeError("mmap: not\n possible.")

    monkeypatch.setattr(checkpoints, "safe_open", refuses)
    with pytest.raises(ValueError, match=r"^mmap: not possible$"):
        checkpoints.read_tensors(tmp_path / "last.safetensors")

"""A run knows the data it was trained on: what changes later is refused or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.config.recipe import read_recipe
from fsl_core.data import sharing
from fsl_core.data.pool import LabelledPool
from fsl_core.data.pooled import PooledEpisodes
from fsl_core.data.sharing import split_by_name
from fsl_core.errors import DataError, RunError
from fsl_core.hooks.loader import load
from fsl_core.runs.data_record import data_changes, keep_data_record, refuse_other_data
from fsl_core.runs.opening import new_run, open_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
USED = ("train", "test")
RECIPE = """\
episodes: {name: image-folder, root: data, n_way: 2, n_shot: 1, n_query: 1, image_size: 8}
backbone: {name: mlp, hidden: [4]}
adapter: {name: nearest-centroid}
outer: {optimizer: {name: adam, lr: 0.01}, meta_batch_size: 1, steps: 4, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 2}
"""


class Letters(PooledEpisodes):
    """Pictures of one shade each: {split: {class: shades}}."""

    name = "letters"

    def __init__(self, **splits: dict[str, list[int]]):
        super().__init__(2, 1, 1, input_shape=(1, 2, 2))
        self.splits = splits

    def load(self, split):
        return LabelledPool.from_classes(
            (name, torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2))
            for name, shades in self.splits[split].items()
        )


BEFORE = {"train": {"a": [1, 2], "b": [3, 4]}, "test": {"c": [5, 6], "d": [7, 8, 9]}}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The directory of a run that began with BEFORE."""
    assert keep_data_record(tmp_path, Letters(**BEFORE), USED, begun=False) == []
    return tmp_path


def test_what_is_recorded(begun: Path):
    source = Letters(**BEFORE)
    assert json.loads((begun / "data.json").read_text()) == {
        "splits": {
            "train": {"digest": source.pool("train").digest, "classes": {"a": 2, "b": 2}},
            "test": {"digest": source.pool("test").digest, "classes": {"c": 2, "d": 3}},
        },
        "passed_over": 0,
    }


def test_the_same_data_goes_on_without_a_word(begun: Path):
    before = (begun / "data.json").read_bytes()
    refuse_other_data(begun, Letters(**BEFORE), USED)
    assert keep_data_record(begun, Letters(**BEFORE), USED, begun=True) == []
    assert data_changes(begun, Letters(**BEFORE), "test") == ""
    assert (begun / "data.json").read_bytes() == before


@pytest.mark.parametrize(
    ("split", "classes", "change"),
    [
        ("test", {"c": [5, 6]}, "test lost class d"),
        ("test", {"c": [5, 6], "d": [7, 8, 9], "e": [1, 1]}, "test gained class e"),
        ("test", {"x": [5, 6], "y": [7]}, "test lost classes c, d, gained classes x, y"),
        ("test", {"c": [5], "d": [7, 8, 9]}, "test has another number of items in class c"),
        ("test", {"c": [5, 0], "d": [7, 8, 9]}, "test has other items in the same classes"),
        ("train", {"a": [1, 2], "b": [3, 0]}, "train has other items in the same classes"),
    ],
)
def test_other_data_is_refused_when_training_goes_on_and_said_in_an_evaluation(
    begun: Path, split: str, classes: dict[str, list[int]], change: str
):
    now = Letters(**{**BEFORE, split: classes})
    with pytest.raises(DataError) as caught:
        refuse_other_data(begun, now, USED)
    assert str(caught.value) == (
        f"{begun}: its data changed since training began: {change}. "
        "The data as it was, or a new run"
    )
    assert data_changes(begun, now, split) == change
    other = {"train": "test", "test": "train"}[split]
    assert data_changes(begun, now, other) == ""


def test_a_class_that_was_trained_on_is_refused_in_another_split(begun: Path):
    now = Letters(train={"b": [3, 4], "z": [1, 2]}, test={"a": [1, 2], "c": [5, 6]}, validation={})
    message = r"split 'test' now holds class a, which the run was trained on\. The data as it was"
    with pytest.raises(DataError, match=message):
        refuse_other_data(begun, now, USED)
    with pytest.raises(DataError, match=message):
        data_changes(begun, now, "test")


def test_a_split_that_the_run_did_not_use_may_not_hold_them_either(begun: Path):
    now = Letters(**BEFORE | {"train": {"b": [3, 4]}, "validation": {"a": [1, 2], "c": [5, 6]}})
    with pytest.raises(DataError, match="split 'validation' now holds class a, which"):
        data_changes(begun, now, "validation")
    assert data_changes(begun, Letters(**BEFORE, validation={"e": [1, 2]}), "validation") == ""


def test_splits_that_share_their_classes_on_purpose(tmp_path: Path):
    """As digits with other pictures in each split."""
    shared = Letters(
        **{s: {"0": [i], "1": [i + 1]} for i, s in enumerate(("train", "test", "validation"))}
    )
    keep_data_record(tmp_path, shared, USED, begun=False)
    refuse_other_data(tmp_path, shared, USED)
    assert [data_changes(tmp_path, shared, s) for s in ("train", "validation", "test")] == [""] * 3


def test_names_are_compared_in_their_composed_form(tmp_path: Path):
    decomposed, composed = "cafe\u0301", "café"
    keep_data_record(
        tmp_path, Letters(**BEFORE | {"train": {decomposed: [1, 2], "b": [3]}}), USED, False
    )
    assert (
        composed in json.loads((tmp_path / "data.json").read_text())["splits"]["train"]["classes"]
    )
    now = Letters(**BEFORE | {"test": {composed: [1, 2], "c": [5]}})
    with pytest.raises(DataError, match="now holds class café, which"):
        data_changes(tmp_path, now, "test")


def test_a_name_of_any_bytes_is_kept(tmp_path: Path):
    odd = Letters(**BEFORE | {"test": {"caf\udce9": [1, 2], "c": [5]}})
    keep_data_record(tmp_path, odd, USED, begun=False)
    refuse_other_data(tmp_path, odd, USED)
    assert data_changes(tmp_path, Letters(**BEFORE), "test").startswith(r"test lost class caf\xe9")


def test_many_changes_are_counted(begun: Path):
    classes = {f"n{i:02d}": [i] for i in range(30)}
    told = data_changes(begun, Letters(**BEFORE | {"test": classes}), "test")
    assert told.endswith("n08, n09 and 20 more")


def test_drawn_episodes_have_nothing_to_change(tmp_path: Path):
    assert keep_data_record(tmp_path, Sinusoid(), USED, begun=False) == []
    refuse_other_data(tmp_path, Sinusoid(), USED)
    recorded = json.loads((tmp_path / "data.json").read_text())["splits"]
    assert recorded == {split: {"digest": None, "classes": {}} for split in USED}
    assert data_changes(tmp_path, Sinusoid(), "test") == ""


def test_a_run_of_an_earlier_version_has_no_record(tmp_path: Path):
    notes = keep_data_record(tmp_path, Letters(**BEFORE), USED, begun=True)
    assert notes == ["data: no data.json, so its data may have changed since training began"]
    assert not (tmp_path / "data.json").exists()
    refuse_other_data(tmp_path, Letters(**BEFORE), USED)
    assert data_changes(tmp_path, Letters(**BEFORE), "test") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"data\.json: no 'splits'\. The file as it was, or a new run"),
        ('{"splits": 1}', r"data\.json: 'splits' holds 1\. The file as it was, or a new run"),
        ('{"splits": {"test": {"classes": []}}}', r"data\.json: no 'splits\.test\.digest'\. "),
    ],
)
def test_a_damaged_record(begun: Path, content: str, message: str):
    (begun / "data.json").write_text(content)
    with pytest.raises(RunError, match=message):
        data_changes(begun, Letters(**BEFORE), "test")


def paint(folder: Path, n: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("L", (8, 8), 20 * i + sum(folder.name.encode()) % 20).save(folder / f"{i}.png")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of image-folder on twelve classes, half of its four steps done."""
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        paint(tmp_path / "data" / f"c{i:02d}")
    (tmp_path / "data" / "README.md").write_text("")
    (tmp_path / "r.yaml").write_text(RECIPE)
    loaded = load(entry_points=False)
    recipe = read_recipe(tmp_path / "r.yaml", loaded.catalogue)
    with new_run(tmp_path / "run", recipe, loaded, CPU, []) as run:
        train(run)
        judge(run)
        assert run.notes == [
            "data: passed over: 1 not a picture by its ending. `fsl check --data` lists them"
        ]
    return tmp_path / "run"


def test_a_result_says_that_train_and_test_share_their_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    x, y = np.random.default_rng(0).normal(size=(300, 4)).astype("f4"), np.arange(300) % 5
    np.savez(tmp_path / "a.npz", x=x, y=y)
    loaded, results = load(entry_points=False), {}
    episodes = f"{{name: arrays, file: {tmp_path / 'a.npz'}, n_way: 2, n_query: 2"
    for rest in ("split_by: items", "split_seed: 2"):
        text = RECIPE.splitlines()[1:]
        recipe = [f"episodes: {episodes}, {rest}}}", *text]
        (tmp_path / "r.yaml").write_text("\n".join(recipe))
        recipe = read_recipe(tmp_path / "r.yaml", loaded.catalogue)
        with new_run(tmp_path / f"run {rest}", recipe, loaded, CPU, []) as run:
            train(run)
            results[rest] = judge(run).get("shared_classes"), run.notes
    assert results["split_by: items"] == (5, [SHARED])
    assert results["split_seed: 2"] == (None, [])


SHARED = (
    "data: train and test share 5 classes. Scores are for new items of classes that were trained "
    "on, not for new classes"
)


def go_on(directory: Path) -> None:
    with open_run(directory, CPU, write=True) as run:
        run.restore_last()
        train(run)


def test_a_run_of_folders_goes_on_with_the_same_folders_alone(trained: Path):
    go_on(trained)
    split = {
        s: [f"c{i:02d}" for i in range(12) if split_by_name(f"c{i:02d}", (0.6, 0.2, 0.2), 0) == s]
        for s in USED
    }
    shutil.rmtree(trained.parent / "data" / split["test"][0])
    with pytest.raises(DataError, match=f"training began: test lost class {split['test'][0]}\\. "):
        go_on(trained)
    with open_run(trained, CPU, write=False) as run:
        source = run.experiment.source
        assert data_changes(trained, source, "train") == ""
        assert data_changes(trained, source, "test") == f"test lost class {split['test'][0]}"


def test_classes_that_another_version_puts_in_other_splits_are_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch
):
    """The very case of a drifting split: classes of training come into the test split."""
    monkeypatch.setattr(sharing, "SHARED_OUT_BY", "another text")
    message = r"run: split 'test' now holds class(es)? c\d\d.*, which the run was trained on"
    with open_run(trained, CPU, write=False) as run, pytest.raises(DataError, match=message):
        data_changes(trained, run.experiment.source, "test")

"""Folders of pictures as a user meets them: read, passed over, changed, damaged."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.parts.command_line import Call, Ended

RECIPE = """\
episodes: {name: image-folder, root: data, n_way: 2, n_shot: 1, n_query: 1, image_size: 16}
backbone: {name: conv4, channels: 4, norm: group}
adapter: {name: nearest-centroid}
outer: {optimizer: {name: adam, lr: 0.01}, meta_batch_size: 1, steps: 2, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 2}
"""
BYTES = os.fsdecode(b"caf\xe9")
DECOMPOSED, COMPOSED = "cafe\u0301", "café"


@pytest.fixture
def call(tmp_path: Path, in_process: Call) -> Call:
    """`fsl` in this process, beside a recipe of image-folder."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    return in_process


def paint(folder: Path, n: int = 3, size: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        shade = (40 * i, sum(os.fsencode(folder.name)) % 250, 9)
        Image.new("RGB", (size, size), shade).save(folder / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders train and test of two classes each."""
    for name in ("train/ant", "train/bee", "test/cat", "test/dog"):
        paint(tmp_path / "data" / name)
    return tmp_path / "data"


def test_check_data_lists_classes_sizes_and_what_is_passed_over(call: Call, data: Path):
    paint(data / "train" / "ant" / "more", 2, size=20)
    paint(data / "train" / "ant" / ".ipynb_checkpoints")
    (data / "test" / "cat" / "gone.png").symlink_to("nowhere")
    for i in range(12):
        (data / f"notes{i:02d}.txt").write_text("")
    shutil.copy(data / "train" / "bee" / "1.png", data / "test" / "dog" / "9.png")
    shutil.copy(data / "train" / "bee" / "1.png", data / "train" / "bee" / "8.png")
    ended = call("check", "--data", "r.yaml")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "train: 2 classes, 9 items, 4 to 5 of a class; pictures of 8x8 to 20x20",
        "  ant 5, bee 4",
        "test: 2 classes, 7 items, 3 to 4 of a class; pictures of 8x8",
        "  cat 3, dog 4",
        "passed over: 1 hidden (the name begins with a dot)",
        "  data/train/ant/.ipynb_checkpoints",
        "passed over: 1 link to nothing",
        "  data/test/cat/gone.png",
        "passed over: 12 not a picture by its ending",
        *(f"  data/notes{i:02d}.txt" for i in range(10)),
        "  … and 2 more (--list)",
        "equal pictures in more than one class or split: 1",
        "  train data/train/bee/1.png = train data/train/bee/8.png = test data/test/dog/9.png",
        "r.yaml: ok. nearest-centroid on conv4, 588 parameters, hypergradient unrolled, image-folder 2-way 1-shot 1-query",
    ]
    assert "  data/notes11.txt" in call("check", "--data", "--list", "r.yaml").out.splitlines()


def test_check_data_as_json(call: Call, data: Path):
    paint(data / "train" / BYTES)
    shutil.copytree(data / "train" / "ant", data / "test" / "ant")
    (data / "x.txt").write_text("")
    ended = call("check", "--data", "--json", "r.yaml")
    told = json.loads(ended.out)
    assert told["splits"]["train"]["classes"] == {"ant": 3, "bee": 3, r"caf\xe9": 3}
    assert told["splits"]["test"]["smallest"] == [8, 8]
    assert len(told["splits"]["test"]["digest"]) == 32
    assert told["passed_over"] == [
        {"path": "data/x.txt", "reason": "not a picture by its ending", "detail": ""}
    ]
    assert told["classes_in_many_splits"] == {"ant": ["train", "test"]}
    assert [[place["file"] for place in group] for group in told["identical"]] == [
        [f"data/{split}/ant/{i}.png" for split in ("train", "test")] for i in range(3)
    ]
    assert told["faults"] == []
    assert told["too_small"] == {}


def test_check_data_ends_with_2_where_a_run_would_be_refused(call: Call, data: Path):
    for name in ("train/ant/1.png", "train/bee/0.png"):
        (data / name).write_text("junk")
    (data / "test" / "dog" / "1.png").unlink()
    ended = call("check", "--data", "r.yaml", "-s", "evaluate.n_query=2")
    assert ended.code == 2
    assert ended.out.splitlines()[-2:] == [
        "test: 1 classes with too few items; n_shot 1 and n_query 2 need 3",
        "  dog: 2",
    ]
    assert ended.err.splitlines()[0].startswith("data/train/ant/1.png: not a readable image (")
    assert ended.err.splitlines()[2].startswith("2 of 6 pictures and folders cannot be read. ")
    assert ended.err.splitlines()[3].endswith(
        "class 'dog' has 2 items. n_shot: 1 and n_query: 2 need at least 3"
    )
    told = json.loads(call("check", "--data", "--json", "r.yaml").out)
    assert told["faults"] == ended.err.splitlines()[:3]
    skipping = call("check", "--data", "r.yaml", "-s", "episodes.skip_unreadable=true")
    assert skipping.code == 0
    assert "passed over: 2 unreadable" in skipping.out


def test_check_data_of_other_sources(call: Call, toy_recipe: Path, data: Path):
    ended = call("check", "--data", toy_recipe)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[:3] == [
        f"{s}: episodes are drawn, no data is read" for s in ("train", "test", "validation")
    ]
    matrix = call("check", "--data", toy_recipe, "-s", "matrix={seed: [0, 1]}")
    assert matrix.code == 2
    assert "--data reads the data of one recipe, and this one has a `matrix:`. " in matrix.err
    memory = call("check", "--memory", toy_recipe, "-s", "matrix={seed: [0, 1]}")
    assert memory.code == 2
    assert "--memory tells of one recipe, and this one has a `matrix:`. " in memory.err
    both = call("check", "--data", "--json", "--memory", toy_recipe)
    assert both.code == 2
    assert "what it tells is no JSON. Without --json" in both.err
    for option in ("--list", "--json"):
        assert f"{option} says what is read. With --data" in call("check", option, "r.yaml").err


def test_a_run_says_what_is_passed_over_and_an_evaluation_what_has_changed(call: Call, data: Path):
    (data / "train" / "ant" / "gone.png").symlink_to("nowhere")
    started = call("run", "r.yaml", "--out", "out")
    assert started.code == 0, started.err
    assert started.err.splitlines()[0] == (
        "note: data: passed over: 1 link to nothing. `fsl check --data` lists them"
    )
    assert "note" not in call("eval", "out").err
    assert "note" not in call("report", "out").err

    paint(data / "test" / "eel")
    note = "note: data changed since training began: test gained class eel. "
    for command in ("eval", "report"):
        ended = call(command, "out")
        assert ended.code == 0
        assert ended.err.startswith(note)

    (data / "train" / "bee").rename(data / "test" / "bee")
    message = "out: split 'test' now holds class bee, which the run was trained on. The data as it"
    refused = call("eval", "out")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(message)
    assert call("report", "out").err.startswith(f"without episodes: {message}")
    assert message in (Path("out") / "report.html").read_text().replace("&#39;", "'")
    (Path("out") / "result.json").unlink()
    resumed = call("resume", "out")
    assert resumed.code == 2
    assert resumed.err.startswith(message)


@pytest.fixture
def predict(call: Call, data: Path, tmp_path: Path) -> Callable[..., Ended]:
    """`fsl predict` with a trained run, class folders `labelled` and new pictures `new`."""
    assert call("run", "r.yaml", "--out", "out").code == 0
    for name in ("one", "two"):
        paint(tmp_path / "labelled" / name)
        paint(tmp_path / "new" / name, 2)
    return lambda *options: call(
        "predict", "out", "--support", "labelled", "--query", "new", *options
    )


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_damaged_pictures_are_told_at_once(predict: Callable[..., Ended]):
    for i in (0, 2):
        (Path("labelled") / "one" / f"{i}.png").write_text("junk")
    Path("new/two/0.png").write_text("junk")
    Path("new/two/x.png").write_text("junk")
    ended = predict()
    assert ended.code == 2
    assert [line.partition(": not a read")[0] for line in ended.err.splitlines()] == [
        "labelled/one/0.png",
        "labelled/one/2.png",
        "2 of 6 pictures and folders cannot be read. "
        "Whole image files, or --skip-unreadable, which leaves them out",
    ]
    for i in (0, 2):
        Path(f"labelled/one/{i}.png").unlink()
    paint(Path("labelled/one"))
    ended = predict()
    assert [line.partition(": not a read")[0] for line in ended.err.splitlines()][:2] == [
        "new/two/0.png",
        "new/two/x.png",
    ]


def test_damaged_pictures_are_skipped_and_listed(predict: Callable[..., Ended]):
    whole = predict("--out", "whole.csv")
    assert whole.code == 0
    assert "note" not in table(Path("whole.csv").read_text())[0]
    (Path("labelled") / "one" / "0.png").write_text("junk")
    Path("new/two/0.png").write_text("junk")
    ended = predict("--skip-unreadable", "--html", "page.html")
    assert ended.code == 0, ended.err
    rows = table(ended.out)
    assert list(rows[0]) == ["file", "predicted", "class", "p_one", "p_two", "note"]
    assert [row["file"] for row in rows] == ["one/0.png", "one/1.png", "two/1.png", "two/0.png"]
    assert [bool(row["predicted"]) for row in rows] == [True, True, True, False]
    assert [row["note"][:21] for row in rows] == ["", "", "", "not a readable image "]
    assert "accuracy" in ended.err
    assert "(3 pictures)" in ended.err
    notes = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith(
        "note: --support: left out: labelled/one/0.png: not a readable image"
    )
    assert notes[1].startswith("note: --query: left out: two/0.png: not a readable image")
    page = Path("page.html").read_text()
    assert "1 files that could not be read" in page
    assert "<b>two/0.png</b>: not a readable image" in page


def test_nothing_readable_is_an_error_though_skipped(predict: Callable[..., Ended]):
    for file in Path("new").rglob("*.png"):
        file.write_text("junk")
    ended = predict("--skip-unreadable")
    assert ended.code == 2
    assert "4 of 4 pictures and folders cannot be read" in ended.err
    for file in Path("labelled/two").iterdir():
        file.write_text("junk")
    ended = predict("--skip-unreadable")
    assert ended.code == 2
    assert "3 of 3 pictures and folders cannot be read" in ended.err


def test_labels_are_found_by_the_composed_form_of_names(predict: Callable[..., Ended]):
    Path("labelled/one").rename(f"labelled/{DECOMPOSED}")
    Path("new/one").rename(f"new/{COMPOSED}")
    ended = predict()
    assert ended.code == 0, ended.err
    rows = table(ended.out)
    assert list(rows[0]) == ["file", "predicted", "class", f"p_{DECOMPOSED}", "p_two"]
    assert [row["file"] for row in rows][:2] == [f"{COMPOSED}/0.png", f"{COMPOSED}/1.png"]
    assert {row["class"] for row in rows} == {DECOMPOSED, "two"}
    paint(Path(f"labelled/{COMPOSED}"))
    ended = predict()
    assert ended.code == 2
    assert "have one name, 'café', in two Unicode forms. One folder for each class" in ended.err


def test_names_of_any_bytes_and_of_escapes_are_predicted(predict: Callable[..., Ended], call: Call):
    Path("labelled/one").rename(f"labelled/{BYTES}")
    Path("new/one").rename(f"new/{BYTES}")
    Path("new/two/0.png").rename("new/two/\x1b[31m\n.png")
    files = ["--out", "p.csv", "--html", "p.html", "--save", "kept.safetensors"]
    ended = predict(*files)
    assert ended.code == 0, ended.err
    text = Path("p.csv").read_text(encoding="utf-8")
    rows = table(text)
    assert list(rows[0]) == ["file", "predicted", "class", r"p_caf\xe9", "p_two"]
    assert [row["file"] for row in rows] == [
        r"caf\xe9/0.png",
        r"caf\xe9/1.png",
        r"two/\x1b[31m\n.png",
        "two/1.png",
    ]
    assert r"caf\xe9" in Path("p.html").read_text(encoding="utf-8")
    again = call("predict", "kept.safetensors", "--query", "new")
    assert again.out == text


@pytest.mark.parametrize(("option", "ending"), [("--save", "safetensors"), ("--export", "pt2")])
def test_files_that_safetensors_could_not_read_again(
    predict: Callable[..., Ended], option: str, ending: str
):
    ended = predict(option, f"{BYTES}.{ending}")
    assert ended.code == 2
    assert rf"caf\xe9.{ending}: a name that is not UTF-8. Another name" in ended.err


def test_runs_with_names_that_are_not_utf8(call: Call, data: Path, monkeypatch: pytest.MonkeyPatch):
    ended = call("run", "r.yaml", "--out", BYTES)
    assert (ended.code, ended.err) == (2, "caf\\xe9: a name that is not UTF-8. Another name\n")
    assert not Path(BYTES).exists()
    shutil.copytree(data, Path(BYTES) / "data")
    (Path("odd.yaml")).write_text(RECIPE.replace("root: data", r'root: "caf\uDCE9/data"'))
    ended = call("check", "odd.yaml")
    assert ended.code == 2
    assert r"odd.yaml:1: episodes.root: found 'caf\xe9/data'. Text in UTF-8: another" in ended.err
    recipe = Path("r.yaml").absolute()
    monkeypatch.chdir(BYTES)
    ended = call("run", recipe, "--out", "out")
    assert ended.code == 2
    assert r"caf\xe9/data' is not UTF-8, and no recipe can name it. Another name" in ended.err
    assert not Path("out").exists()

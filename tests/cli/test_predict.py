"""`fsl predict` as a user meets it: table, page, saved predictor, notes."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = """\
episodes: {name: image-folder, root: pictures, n_way: 2, n_shot: 1, n_query: 2, image_size: 16}
backbone: {name: conv4, channels: 8, norm: NORM}
adapter: {name: nearest-centroid}
outer: {optimizer: {name: adam, lr: 0.01}, meta_batch_size: 2, steps: 2, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 2}
"""


@pytest.fixture
def run(in_process, tmp_path: Path):
    """Train on pictures of one colour, with support and query folders of other colours."""

    def paint(file: str, colour: tuple[int, int, int], size: tuple[int, int] = (30, 20)) -> None:
        noise = np.random.default_rng(len(file)).integers(-9, 9, (*size, 3))
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
            tmp_path / file
        )

    for split in ("train", "test"):
        for c in range(2):
            for i in range(4):
                paint(f"pictures/{split}/c{c}/{i}.png", (200 * c, 60 + 10 * i, 90))
    for name, colour in {
        "red": (220, 10, 10),
        "<b>green": (10, 220, 10),
        "blue": (10, 10, 220),
    }.items():
        for i in range(3 if name == "red" else 2):
            paint(f"support/{name}/{i}.jpg", colour)
        paint(f"query/{name}/a.png", colour, (90, 41))
        paint(f"loose/{name.removeprefix('<b>')}.png", colour, (33, 33))

    def train(norm: str) -> None:
        (tmp_path / "r.yaml").write_text(RECIPE.replace("NORM", norm))
        trained = in_process("run", "r.yaml", "--out", "out")
        assert trained.code == 0, trained.err

    return train


def test_table_page_and_saved_predictor(fsl, run, tmp_path: Path):
    run("group")
    files = [
        "--out",
        "p.csv",
        "--html",
        "p.html",
        "--save",
        "kept.safetensors",
        "--export",
        "p.pt2",
    ]
    ended = fsl("predict", "out", "--support", "support", "--query", "query", *files)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0].startswith("3 pictures: 1 ")
    assert ended.stdout.splitlines()[1] == "accuracy 1.0000 (3 pictures)"
    assert "unequal numbers" not in ended.stderr  # all of them are used
    assert "predicted together" not in ended.stderr
    assert re.search(
        r"^p\.pt2: probabilities of these pictures within \d\.\de[-+]\d+$", ended.stderr, re.M
    )

    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert list(rows[0]) == ["file", "predicted", "class", "p_<b>green", "p_blue", "p_red"]
    assert [row["file"] for row in rows] == ["<b>green/a.png", "blue/a.png", "red/a.png"]
    for row in rows:
        assert (
            row["predicted"]
            == row["class"]
            == max(("<b>green", "blue", "red"), key=lambda name: float(row[f"p_{name}"]))
        )
        assert (
            abs(sum(float(value) for key, value in row.items() if key.startswith("p_")) - 1) < 1e-5
        )

    html = (tmp_path / "p.html").read_text()
    assert html.count("data:image/png;base64,") == 3 + 7
    assert html.count('class="near"') == 3
    assert "&lt;b&gt;green" in html
    assert "<b>green" not in html
    assert "accuracy 1.0000" in html
    assert not re.search(
        r"(src|href)=\"?http|url\(http|@import|<script", html
    )  # it fetches nothing

    again = fsl("predict", "kept.safetensors", "--query", "query")
    assert again.stdout == (tmp_path / "p.csv").read_text()
    assert "accuracy 1.0000 (3 pictures)" in again.stderr


def test_unlabelled_pictures(in_process, run):
    run("transductive")
    ended = in_process("predict", "out", "--support", "support", "--query", "loose")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["file"] for row in rows] == ["blue.png", "green.png", "red.png"]
    assert "class" not in rows[0]
    assert "accuracy" not in ended.err
    assert (
        "note: norm transductive, adapter nearest-centroid: a prediction depends on which pictures are"
        in ended.err
    )


def test_one_picture(in_process, run):
    run("group")
    ended = in_process("predict", "out", "--support", "support", "--query", "loose/red.png")
    assert [row["file"] for row in csv.DictReader(io.StringIO(ended.out))] == ["red.png"]


def test_a_page_until_ctrl_c(run, tmp_path: Path):
    run("group")
    command = [sys.executable, "-m", "fsl_core", "predict", "out", "--support", "support"]
    environment = {**os.environ, "FSL_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        [*command, "--serve"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a shell in the background starts what it runs with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as serving:
        told = ""
        while not (found := re.search(r"open (http://\S+)", told)):
            told += serving.stderr.readline() or pytest.fail(told)
        with urllib.request.urlopen(found[1], timeout=600) as page:
            assert b"3 classes" in page.read()
        serving.send_signal(signal.SIGINT)
        assert serving.stderr.read() == "ended\n"
    assert serving.returncode == 0


def test_nothing_to_predict_is_one_line(in_process, run):
    run("group")
    for options, message in (
        ([], "--query: absent. A folder of pictures, one picture, or --serve"),
        (["--serve", "--out", "p.csv"], "--out: nothing to predict. --query with pictures"),
        (["--query", "none.png"], "none.png: does not exist. A folder of pictures, or one picture"),
    ):
        ended = in_process("predict", "out", "--support", "support", *options)
        assert ended.code == 2
        assert ended.err.strip().endswith(message)


def test_a_note_says_that_pictures_are_left_out(capsys):
    from types import SimpleNamespace

    from fsl_core.cli.predicting import _note

    learner = SimpleNamespace(adapter=SimpleNamespace(name="equal"))
    _note(
        SimpleNamespace(
            classes=("a", "b"), found=(2, 3), shots=(2, 2), learner=learner, together=False
        )
    )
    assert capsys.readouterr().err == (
        "note: unequal numbers of labelled pictures (a 2, b 3); the first 2 of each are used, "
        "because adapter 'equal' takes as many of each class\n"
    )

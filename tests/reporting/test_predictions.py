"""Predictions of pictures whose names were chosen by somebody else."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import torch

from fsl_core.predicting.pictures import Pictures
from fsl_core.reporting.predictions import Predictions

CLASSES = ("=cmd()", "$\\frac{$", "<b>\x1b[2J")
FILES = ["-1.png", "@x.png", "-2", "a\n.png"]


def predictions() -> Predictions:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    learner = SimpleNamespace(adapter=SimpleNamespace(name="nearest-centroid"))
    predictor = SimpleNamespace(
        classes=CLASSES,
        images=images[:3],
        labels=torch.arange(3),
        nearest=lambda images, count: torch.tensor([[0, 1, 2]]).expand(len(images), 3),
        learner=learner,
        experiment=SimpleNamespace(norm="group"),
        invert=False,
        together=False,
    )
    return Predictions(
        predictor, Pictures(images, FILES, None), torch.eye(3)[[0, 1, 2, 0]] * 0.5 + 0.1
    )


def read(text: str) -> list[list[str]]:
    return [*csv.reader(io.StringIO(text, newline=""))]


def test_a_spreadsheet_computes_no_name():
    heading, *rows = read(predictions().to_csv())
    assert heading == ["file", "predicted", "p_=cmd()", r"p_$\frac{$", r"p_<b>\x1b[2J"]
    assert [row[0] for row in rows] == ["'-1.png", "'@x.png", "-2", r"a\n.png"]
    assert [row[1] for row in rows] == ["'=cmd()", r"$\frac{$", r"<b>\x1b[2J", "'=cmd()"]
    assert rows[0][2:] == ["0.600000", "0.100000", "0.100000"]


def test_raw_names_are_those_of_the_files():
    heading, *rows = read(predictions().to_csv(raw=True))
    assert heading[2:] == [f"p_{name}" for name in CLASSES]
    assert [row[0] for row in rows] == FILES
    assert [row[1] for row in rows] == [*CLASSES, CLASSES[0]]


def test_the_page_obeys_no_name(tmp_path: Path):
    predictions().write_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "\x1b" not in page
    assert r"&lt;b&gt;\x1b[2J" in page
    assert page.count("data:image/png;base64,") == 7


def test_bars_stand_beside_names_and_not_under_them(tmp_path: Path):
    predictions().write_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    shown = r'<span>0\.60</span><div class="bar"><i style="width: 60.0%"></i></div><span>=cmd\(\)</span>'
    assert len(re.findall(shown, page)) == 2

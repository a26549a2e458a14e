"""What is said of work other than training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fsl_core import cli
from fsl_core.config.recipe import read_recipe
from fsl_core.data.work import for_each
from fsl_core.errors import DataError
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting import progress
from fsl_core.runs.opening import new_run
from fsl_core.training.outer_loop import train


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0)


@pytest.mark.usefixtures("_at_once")
def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture):
    with progress.report_work("decoding pictures", 60) as advance:
        advance(20)
        advance(40)
    with progress.report_work("decoding pictures", None) as advance:
        advance(7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "decoding pictures: 20 of 60",
        "decoding pictures: 60 of 60",
        "decoding pictures: 7",
    ]


def test_what_is_soon_done_is_not_shown(capsys: pytest.CaptureFixture):
    with progress.report_work("decoding pictures", 60) as advance:
        advance(60)
    assert capsys.readouterr().err == ""


def test_interrupted_it_says_what_happens_next(capsys: pytest.CaptureFixture):
    def interrupted() -> None:
        with progress.report_work("decoding pictures", 60) as advance:
            advance(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == (
        "decoding pictures: stopped at 20 of 60. Nothing of it is kept; it begins again next time\n"
    )


@pytest.mark.usefixtures("_at_once")
def test_the_command_line_reports_all_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def app() -> None:
        for_each(lambda i: None, 3, "decoding pictures")
        raise DataError("the end")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["decoding pictures: 3 of 3", "the end"]
    for_each(lambda i: None, 3, "decoding pictures")
    assert capsys.readouterr().err == ""


class Notebook(Console):
    """A console as in a notebook, where rich would need IPython to print."""

    def __init__(self) -> None:
        super().__init__()
        self.is_jupyter = True
        self.printed: list[str] = []

    def print(self, *objects: Any, **options: Any) -> None:
        self.printed += map(str, objects)


@pytest.mark.usefixtures("_at_once")
def test_a_notebook_without_widgets_gets_lines(
    toy_recipe: Path, toy_plugins: Loaded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    notebook = Notebook()
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, ["outer.steps=3"])
    toy_plugins.observers.add(progress.ProgressBar(notebook))
    with new_run(None, recipe, toy_plugins, torch.device("cpu"), []) as run:
        train(run)
    steps = [line for line in notebook.printed if "validation" not in line]
    assert [line.partition(": loss ")[0] for line in steps] == [
        "step 1 of 3",
        "step 2 of 3",
        "step 3 of 3",
    ]


def test_a_notebook_with_widgets_gets_bars(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    assert progress._shows_bars(Notebook())
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not progress._shows_bars(Notebook())

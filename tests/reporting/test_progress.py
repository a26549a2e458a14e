"""What is said of long work."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fsl_core import cli
from fsl_core.config.recipe import read_recipe
from fsl_core.data.work import each, for_each, report_to
from fsl_core.errors import DataError
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting import progress
from fsl_core.reporting.progress import Display
from fsl_core.runs.opening import new_run
from fsl_core.training.outer_loop import train


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch):
    for name in ("SHOWN_AFTER", "LINE_EVERY", "LINE_GROWTH"):
        monkeypatch.setattr(progress, name, 0)


@pytest.fixture
def display() -> Display:
    return Display(Console(stderr=True))


@pytest.mark.usefixtures("_at_once")
def test_plain_lines_where_there_is_no_terminal(display: Display, capsys: pytest.CaptureFixture):
    with display.work("decoding pictures", 60) as advance:
        advance(20)
        advance(40)
    with display.work("decoding pictures", None) as advance:
        advance(7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "decoding pictures: 20 of 60",
        "decoding pictures: 60 of 60",
        "decoding pictures: 7",
    ]


def test_what_is_soon_done_is_not_shown(display: Display, capsys: pytest.CaptureFixture):
    with display.work("decoding pictures", 60) as advance:
        advance(60)
    assert capsys.readouterr().err == ""


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_lines_tell_how_long_it_will_take_and_are_no_flood(
    display: Display, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with display.work("judging", 3600) as advance:
        for _ in range(3600):
            clock.now += 1
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "judging: 2 of 3600, about 60 min left",
        "judging: 12 of 3600, about 60 min left",
        "judging: 22 of 3600, about 60 min left",
    ]
    assert lines[-1].endswith(" min left")
    assert 15 < len(lines) < 30


@pytest.mark.parametrize(
    ("done", "total", "seconds", "told"),
    [
        (1, 3, 20.0, ", about 40 s left"),
        (1, 3, 60.0, ", about 2 min left"),
        (1, 3, 7200.0, ", about 4 h left"),
        (0, 3, 20.0, ""),
        (3, 3, 20.0, ""),
        (1, None, 20.0, ""),
        (1, 3, 0.1, ""),
    ],
)
def test_the_time_that_is_left(done: int, total: int | None, seconds: float, told: str):
    assert progress.time_left(done, total, seconds) == told


@pytest.fixture
def terminal() -> tuple[io.StringIO, Display]:
    screen = io.StringIO()
    return screen, Display(Console(file=screen, force_terminal=True, width=100))


@pytest.mark.usefixtures("_at_once")
def test_work_within_work_has_a_bar_of_its_own(terminal: tuple[io.StringIO, Display]):
    screen, display = terminal
    with display.work("judging", 2) as outer:
        outer(1)
        with display.work("decoding pictures", 3) as inner:
            inner(3)
            deadline = time.monotonic() + 30
            while "decoding pictures" not in screen.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)  # bars are drawn by timers
        outer(1)
    assert "decoding pictures" in screen.getvalue()
    assert "judging" in screen.getvalue()
    assert "2/2" in screen.getvalue()


def test_a_bar_is_drawn_only_after_a_while(terminal: tuple[io.StringIO, Display]):
    screen, display = terminal
    with display.work("judging", 2) as advance:
        advance(2)
    assert screen.getvalue() == ""


@pytest.mark.usefixtures("_at_once")
def test_work_of_unknown_length_leaves_nothing_on_the_screen(
    terminal: tuple[io.StringIO, Display],
):
    screen, display = terminal
    with display.work("sending a run", None):
        deadline = time.monotonic() + 30
        while "sending a run" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "sending a run" in screen.getvalue()
    assert "sending a run" not in screen.getvalue().rpartition("\x1b[2K")[2]


def test_interrupted_it_says_how_far_it_was(display: Display):
    def interrupted() -> None:
        with display.work("judging", 2), display.work("decoding pictures", 60) as advance:
            advance(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert display.abandon() == "decoding pictures, 20 of 60"
    assert display.abandon() == ""


def test_work_that_a_generator_reports_is_abandoned_too(display: Display):
    with report_to(display.work):
        items = each(range(3), "preparing runs")
        next(items)
        next(items)
        assert display.abandon() == "preparing runs, 1 of 3"
        items.close()


@pytest.mark.usefixtures("_at_once")
def test_nobody_is_told_of_anything_quietly(call):
    loud, quiet = (
        call("run", "toy.yaml", "--out", "loud"),
        call("run", "toy.yaml", "--out", "quiet", "--quiet"),
    )
    assert "training: 1 of 12, loss" in loud.err
    assert "validation accuracy" in loud.err
    assert quiet.err == ""
    (own, *_), (other, *_) = loud.out.splitlines(), quiet.out.splitlines()
    assert own == other


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
    toy_plugins.observers.add(progress.ProgressBar(Display(notebook)))
    with new_run(None, recipe, toy_plugins, torch.device("cpu"), []) as run:
        train(run)
    steps = [line for line in notebook.printed if "validation" not in line]
    told = [line.partition(", loss ")[0] for line in steps]
    assert (told[0], told[-1]) == ("training: 1 of 3", "training: 3 of 3")


def test_a_notebook_with_widgets_gets_bars(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    assert Display(Notebook()).shows_bars()
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not Display(Notebook()).shows_bars()

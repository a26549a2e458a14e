"""Who is told, with which arguments, and what becomes of an observer that raises."""

from __future__ import annotations

from types import ModuleType

import pytest

import fsl_core as fsl
from fsl_core.hooks.loader import Loaded, load


def watching(name: str, implementation: object) -> ModuleType:
    made = ModuleType(name)
    made.fsl_step_finished = fsl.hookimpl(implementation)
    return made


def load_watching(**implementations: object) -> Loaded:
    modules = [watching(name, function) for name, function in implementations.items()]
    return load(entry_points=False, modules=modules)


def tell_steps(loaded: Loaded, count: int) -> None:
    for step in range(1, count + 1):
        loaded.observers.tell("fsl_step_finished", run=None, step=step, metrics={"loss": 0.5})


def test_each_is_told_what_it_asks_for_the_last_added_first():
    seen = []

    class Bar:
        @fsl.hookimpl
        def fsl_step_finished(self, step):
            seen.append(("bar", step))

    def first(metrics, step):
        seen.append(("first", step, metrics["loss"]))

    def second():
        seen.append(("second",))

    loaded = load_watching(first=first, second=second)
    loaded.observers.add(Bar())
    tell_steps(loaded, 1)
    assert seen == [("bar", 1), ("second",), ("first", 1, 0.5)]


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1)])
def test_a_plugin_that_raises_is_named_once_and_left_out(error: BaseException):
    seen = []

    def fragile(step):
        seen.append(step)
        if step == 2:
            raise error

    loaded = load_watching(fragile=fragile)
    told: list[str] = []
    loaded.observers.warn = told.append
    tell_steps(loaded, 4)
    assert seen == [1, 2]
    (text,) = told
    assert text.startswith("plugin fragile (fragile): fsl_step_finished raised ")
    assert loaded.plugins[-1].notes[-1].endswith("It was left out of the rest of the run")


def test_a_strict_command_ends_with_what_a_plugin_raises(monkeypatch: pytest.MonkeyPatch):
    def fragile():
        raise OSError("disk full")

    loaded = load_watching(fragile=fragile)
    monkeypatch.setenv("FSL_STRICT_PLUGINS", "1")
    with pytest.raises(OSError, match="disk full"):
        tell_steps(loaded, 1)


def test_what_the_program_itself_raises_is_raised():
    class Bar:
        @fsl.hookimpl
        def fsl_step_finished(self):
            raise OSError("disk full")

    loaded = load(entry_points=False)
    loaded.observers.add(Bar())
    with pytest.raises(OSError, match="disk full"):
        tell_steps(loaded, 1)


def test_ctrl_c_is_not_contained():
    def impatient():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell_steps(load_watching(impatient=impatient), 1)


def test_a_misspelt_tracker_is_told(monkeypatch: pytest.MonkeyPatch):
    tracking = watching("tracking", lambda: None)
    tracking.FSL_TRACKERS = ("mine",)
    observers = load(entry_points=False, modules=[tracking]).observers
    monkeypatch.setenv("FSL_TRACKER", "mine, mein wandbb,mlflow \x1b[2J")
    nothing = "no plugin tracks runs under this name, so nothing does"
    assert list(observers.unknown_trackers()) == [
        f"FSL_TRACKER=mein: {nothing}. Did you mean 'mine'?",
        f"FSL_TRACKER=wandbb: {nothing}. Did you mean 'wandb'?",
        f"FSL_TRACKER=mlflow: {nothing}. pip install fsl-mlflow, or let it load",
        f"FSL_TRACKER=\\x1b[2J: {nothing}. Trackers: mine, mlflow, trackio, wandb",
    ]
    monkeypatch.setenv("FSL_TRACKER", "mine")
    assert not list(observers.unknown_trackers())
    monkeypatch.delenv("FSL_TRACKER")
    assert not list(observers.unknown_trackers())

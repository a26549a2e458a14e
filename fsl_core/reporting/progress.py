"""Progress bars. That of training is an observer plugin like any other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fsl_core.hooks.run_view import RunView
from fsl_core.hooks.specs import hookimpl

AVERAGED_STEPS = 50
SHOWN_AFTER, LINE_EVERY = 2.0, 10.0
"""Seconds after which other work is shown, and between lines of it if there is no terminal."""


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not _shows_bars(console),
    )


def _shows_bars(console: Console) -> bool:
    """In a terminal; and in a notebook that has ipywidgets, which rich draws with there."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class ProgressBar:
    """Shows loss, score and episodes per second of training, and a line per validation."""

    def __init__(self, console: Console):
        self._console, self._bar = console, _progress(console)
        self._recent: deque[dict[str, float]] = deque(maxlen=AVERAGED_STEPS)
        self._episodes, self._task, self._shown = 0, TaskID(0), 0.0
        self._next_line = time.monotonic() + SHOWN_AFTER

    @hookimpl
    def fsl_run_started(self, run: RunView) -> None:
        self._episodes = run.recipe["outer"]["meta_batch_size"]
        for note in run.notes:
            self._console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if run.step < run.steps:
            if self._console.is_terminal:
                told = f"execution {run.execution}"
                self._console.print(told, highlight=False, soft_wrap=True)
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=run.steps, completed=run.step, status=""
            )

    @hookimpl
    def fsl_step_finished(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        self._recent.append(metrics)
        now = time.monotonic()
        if now - self._shown > 0.2 or step == run.steps:
            self._shown = now
            self._bar.update(self._task, completed=step, status=self._status(run))
        if self._console.is_jupyter and not _shows_bars(self._console) and now >= self._next_line:
            self._next_line = now + LINE_EVERY
            self._console.print(f"step {step} of {run.steps}: {self._status(run)}", markup=False)
        if step == run.steps:
            self._bar.stop()

    @hookimpl
    def fsl_evaluated(self, run: RunView, split: str, result: dict[str, Any]) -> None:
        if split == "validation":
            best = "  (best so far)" if run.best and run.best.step == run.step else ""
            if not run.learner.adapter.settled:
                best = "  (inside the adapter's warm-up, so never the best)"
            self._console.print(
                f"step {run.step}: validation {format_score(result)}{best}",
                highlight=False,
                soft_wrap=True,
            )

    def _status(self, run: RunView) -> str:
        metric = run.task.metric
        mean = {
            key: sum(m[key] for m in self._recent) / len(self._recent)
            for key in ("loss", metric, "seconds")
        }
        rate = self._episodes / mean["seconds"]
        return f"loss {mean['loss']:.3f}  {metric} {mean[metric]:.3f}  {rate:.0f} episodes/s"

    def stop(self) -> None:
        self._bar.stop()


def format_score(result: dict[str, Any]) -> str:
    """`accuracy 0.9512 ± 0.0034 (95 % interval, 600 episodes)`."""
    metric = result["metric"]
    score = f"{metric} {result[metric]:.4f} ± {result['interval']:.4f}"
    return f"{score} (95 % interval, {result['episodes']} episodes)"


class EvaluationBar:
    """A bar over episodes.

    As a context manager it gives the function to call after each episode.

    what: the work that the bar names.
    """

    def __init__(self, console: Console, episodes: int | None, what: str = "evaluating"):
        self._bar, self._episodes, self._what = _progress(console), episodes, what

    def __enter__(self) -> Callable[[], None]:
        self._bar.start()
        task = self._bar.add_task(self._what, total=self._episodes, status="")
        return lambda: self._bar.advance(task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@contextmanager
def report_work(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """The reporter of `fsl_core.data.work`: a bar on stderr, or plain lines if it is a file."""
    shown = _WorkBar(Console(stderr=True), what, total)
    try:
        yield shown.advance
    except KeyboardInterrupt:
        shown.say(f"stopped at {shown.state()}. Nothing of it is kept; it begins again next time")
        raise
    finally:
        shown.stop()


class _WorkBar:
    def __init__(self, console: Console, what: str, total: int | None):
        self._console, self._what, self._total, self._done = console, what, total, 0
        self._bar = _progress(console)
        self._task = self._bar.add_task(what, total=total, status="")
        self._started = time.monotonic()
        self._next_line = self._started + SHOWN_AFTER

    def advance(self, items: int) -> None:
        self._done += items
        self._bar.advance(self._task, items)
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + LINE_EVERY
        if self._console.is_terminal:
            self._bar.start()
        else:
            self.say(self.state())

    def state(self) -> str:
        return f"{self._done} of {self._total}" if self._total else str(self._done)

    def say(self, text: str) -> None:
        self.stop()
        self._console.print(f"{self._what}: {text}", highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()

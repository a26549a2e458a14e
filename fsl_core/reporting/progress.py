"""What is under way, shown: bars in a terminal or notebook, plain lines now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fsl_core.hooks.run_view import RunView
from fsl_core.hooks.specs import hookimpl

AVERAGED_STEPS = 50
SHOWN_AFTER, LINE_EVERY, LINE_GROWTH = 2.0, 10.0, 0.25
"""Seconds after which work is shown; between its lines where there is no bar, and the share of the
time so far that lies between them at least."""


class Pace:
    """When a line is due: soon at first, then ever less often."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._next = self.started + SHOWN_AFTER

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + max(LINE_EVERY, LINE_GROWTH * (now - self.started))
        return True


def time_left(done: float, total: float | None, seconds: float) -> str:
    """`, about 4 min left`, where `done` took these seconds; "" where nothing can be said yet.

    >>> time_left(1, 5, 60.0), time_left(0, 5, 60.0)
    (', about 4 min left', '')
    """
    if not total or not 0 < done < total or seconds < 1:
        return ""
    left = seconds / done * (total - done)
    for size, unit in ((3600, "h"), (60, "min")):
        if left >= 1.5 * size:
            return f", about {left / size:.0f} {unit} left"
    return f", about {left:.0f} s left"


class Display:
    """The work that is under way on one console.

    Bars stand one below the other, each once its work has taken SHOWN_AFTER seconds.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bars: Progress | None = None
        self._works: list[Work] = []
        self._left_at, self._lock = "", threading.Lock()

    @contextmanager
    def work(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """The reporter of `fsl_core.data.work`."""
        shown = Work(self, what, total)
        try:
            yield shown.advance
        except KeyboardInterrupt:
            self._left_at = self._left_at or shown.told()
            raise
        finally:
            shown.close()

    def abandon(self) -> str:
        """Draw no more, because of an interruption; returns what was under way, and how far."""
        told = self._left_at or next((work.told() for work in reversed(self._works)), "")
        for work in list(self._works):
            work.close()
        self._left_at = ""
        return told

    def say(self, text: str) -> None:
        """A line, above the bars if there are any."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def shows_bars(self) -> bool:
        """In a terminal; and in a notebook that has ipywidgets, which rich draws with there."""
        notebook = self.console.is_jupyter and find_spec("ipywidgets") is not None
        return self.console.is_terminal or notebook

    def open(self, work: Work, what: str, total: int | None, done: int) -> tuple[Progress, TaskID]:
        with self._lock:
            if self._bars is None:
                self._bars = _bars(self.console, not self.shows_bars())
            self._works.append(work)
            return self._bars, self._bars.add_task(
                what, total=total, completed=done, status="", visible=False
            )

    def show(self, task: TaskID) -> None:
        """Draw a bar, unless its work has ended."""
        with self._lock:
            if self._bars is not None and task in self._bars.task_ids:
                self._bars.update(task, visible=True)
                self._bars.start()

    def close(self, work: Work, task: TaskID) -> None:
        with self._lock:
            bars = self._bars
            assert bars is not None  # open() made it
            self._works.remove(work)
            if self._works or work.total is None:  # what has no end tells nothing afterwards
                bars.remove_task(task)
            if self._works:
                return
            self._bars = None
            if bars.live.is_started:
                bars.stop()


class _Left(TimeRemainingColumn):
    """How long it will take; how long it has taken, where nobody knows how much there is."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.elapsed or 0:.0f} s", style="progress.elapsed")
        return super().render(task)


def _bars(console: Console, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        _Left(),
        console=console,
        disable=disable,
    )


@cache
def on_stderr() -> Display:
    """The display of this process."""
    return Display(Console(stderr=True))


class Work:
    """One piece of work on a display. done: what was done before it began."""

    def __init__(self, display: Display, what: str, total: int | None, done: int = 0):
        self._display, self._what, self.total = display, what, total
        self._done = self._before = done
        self._status, self._pace, self._closed = "", Pace(), False
        self._bars, self._task = display.open(self, what, total, done)
        self._timer: threading.Timer | None = None
        if display.shows_bars():
            self._timer = threading.Timer(SHOWN_AFTER, display.show, [self._task])
            self._timer.daemon = True
            self._timer.start()

    def advance(self, items: int = 1) -> None:
        self.reach(self._done + items, self._status)

    def reach(self, done: int, status: str = "") -> None:
        """So much is done in all. status: what else there is to say."""
        self._done, self._status = done, status
        if self._timer is not None:
            self._bars.update(self._task, completed=done, status=status)
        elif self._pace.due():
            self._display.say(f"{self._what}: {self.state()}")

    def told(self) -> str:
        return f"{self._what}, {self.state()}"

    def state(self) -> str:
        seconds = time.monotonic() - self._pace.started
        left = self.total and self.total - self._before
        told = f"{self._done} of {self.total}" if self.total else str(self._done)
        status = f", {self._status}" if self._status else ""
        return f"{told}{status}{time_left(self._done - self._before, left, seconds)}"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._display.close(self, self._task)


class ProgressBar:
    """Shows loss, score and episodes per second of training, and a line per validation.

    It is an observer plugin like any other.
    """

    def __init__(self, display: Display):
        self._display = display
        self._work: Work | None = None
        self._recent: deque[dict[str, float]] = deque(maxlen=AVERAGED_STEPS)
        self._episodes, self._shown = 0, 0.0

    @hookimpl
    def fsl_run_started(self, run: RunView) -> None:
        self._episodes = run.recipe["outer"]["meta_batch_size"]
        for note in run.notes:
            self._display.say(f"note: {note}")
        if run.step < run.steps:
            if self._display.console.is_terminal:
                self._display.say(f"execution {run.execution}")
            self._work = Work(self._display, "training", run.steps, run.step)

    @hookimpl
    def fsl_step_finished(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        self._recent.append(metrics)
        now = time.monotonic()
        if self._work and (now - self._shown > 0.2 or step == run.steps):
            self._shown = now
            self._work.reach(step, self._status(run))
        if step == run.steps:
            self.stop()

    @hookimpl
    def fsl_evaluated(self, run: RunView, split: str, result: dict[str, Any]) -> None:
        if split == "validation":
            best = "  (best so far)" if run.best and run.best.step == run.step else ""
            if not run.learner.adapter.settled:
                best = "  (inside the adapter's warm-up, so never the best)"
            self._display.say(f"step {run.step}: validation {format_score(result)}{best}")

    def _status(self, run: RunView) -> str:
        metric = run.task.metric
        mean = {
            key: sum(m[key] for m in self._recent) / len(self._recent)
            for key in ("loss", metric, "seconds")
        }
        rate = self._episodes / mean["seconds"]
        return f"loss {mean['loss']:.3f}  {metric} {mean[metric]:.3f}  {rate:.0f} episodes/s"

    def stop(self) -> None:
        if self._work:
            self._work.close()


def format_score(result: dict[str, Any]) -> str:
    """`accuracy 0.9512 ± 0.0034 (95 % interval, 600 episodes)`."""
    metric = result["metric"]
    score = f"{metric} {result[metric]:.4f} ± {result['interval']:.4f}"
    return f"{score} (95 % interval, {result['episodes']} episodes)"

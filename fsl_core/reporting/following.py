"""Runs followed while they train, by the files of their directories.

Nothing is written, and no lock is taken.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from fsl_core.errors import FslError, RunError
from fsl_core.reporting.progress import format_score
from fsl_core.runs.files import (
    BEGUN,
    ENVIRONMENT,
    METRICS,
    RECIPE,
    RESULT,
    load_json,
    parse_record,
    read_result,
)
from fsl_core.runs.trial import describe, read_trial
from fsl_core.sweeping.jobs import found_job
from fsl_core.sweeping.status import standing
from fsl_core.text import printable

POINTS = 150
"""Of a curve at least, once a run has as many steps; twice as many at most."""
CURVES = 8
"""Runs whose curves are drawn unless others are asked for."""
SILENCE = 60.0
"""Seconds without a word after which a run without a claim counts as stopped."""
RECENT = 50
"""Steps by which the time that is left is told."""
SCORES = ("accuracy", "mse")


@dataclass
class Curve:
    """Means of a series over as many steps each: the longer it is, the more."""

    size: int = 1
    bins: list[tuple[int, int, float]] = field(default_factory=list)
    """Last step, number of values, their sum."""

    def add(self, step: int, value: float) -> None:
        if self.bins and self.bins[-1][1] < self.size:
            _, count, total = self.bins.pop()
            self.bins.append((step, count + 1, total + value))
        else:
            self.bins.append((step, 1, value))
        if len(self.bins) > 2 * POINTS:
            pairs = zip(self.bins[::2], [*self.bins[1::2], (0, 0, 0.0)], strict=False)
            self.bins = [(max(a[0], b[0]), a[1] + b[1], a[2] + b[2]) for a, b in pairs]
            self.size *= 2

    def points(self) -> list[tuple[int, float]]:
        """A running mean over a fiftieth of the series."""
        found, window = [], 1 + len(self.bins) // 50
        for end, (step, _, _) in enumerate(self.bins, 1):
            part = self.bins[max(0, end - window) : end]
            count, total = (sum(each[k] for each in part) for k in (1, 2))
            found.append((step, total / count))
        return found


class Followed:
    """One run, as far as its files tell. number: by which a page asks for it."""

    def __init__(self, directory: Path, name: str, number: int):
        self.directory, self.name, self.number = directory, name, number
        self._steps: int | None = None
        self._settled: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._file, self._offset = 0, 0
        self.step, self.metric = 0, ""
        self.loss, self.score = Curve(), Curve()
        self.validations: list[tuple[int, float, float]] = []
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def look(self) -> None:
        """Read what has been written since; a last line that is half written waits."""
        with suppress(OSError), (self.directory / METRICS).open("rb") as file:
            found = os.fstat(file.fileno())
            # A resume writes the file again, up to the step that it goes on from.
            if found.st_ino != self._file or found.st_size < self._offset:
                self._begin()
                self._file = found.st_ino
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + bool(whole)
            for line in whole.splitlines():
                self._take(parse_record(line.decode(errors="replace")))

    def _take(self, record: dict[str, Any]) -> None:
        metric = next((key for key in SCORES if key in record), "")
        if not metric or not isfinite(record[metric]):
            return
        self.metric, step = metric, record["step"]
        self.step = max(self.step, step)
        if "split" in record:
            self.validations.append((step, record[metric], record.get("interval", 0.0)))
            return
        self.score.add(step, record[metric])
        if isfinite(record.get("loss", float("inf"))):
            self.loss.add(step, record["loss"])
        self._seconds.append(record.get("seconds", 0.0))

    @property
    def steps(self) -> int | None:
        """Outer steps that it is to take, where its directory says so."""
        if self._steps is None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                self._steps = load_json((self.directory / BEGUN).read_bytes())["recipe"]["outer"][
                    "steps"
                ]
        return self._steps

    def row(self) -> dict[str, Any]:
        """What a table tells of it."""
        if self._settled and (self.directory / RESULT).is_file():
            return self._settled  # unless `fsl resume --steps` has put the result aside
        state, detail = self._state()
        left = None
        if state == "running" and self._seconds and self.steps:
            left = fmean(self._seconds) * max(0, self.steps - self.step)
        better = min if self.metric == "mse" else max
        best = better((score for _, score, _ in self.validations), default=None)
        last = [curve.points()[-1:] for curve in (self.loss, self.score)]
        loss, score = (points[0][1] if points else None for points in last)
        row = {
            "number": self.number,
            "name": printable(self.name),
            "state": state,
            "detail": printable(detail),
            "step": self.step,
            "steps": self.steps,
            "left": left,
            "loss": loss,
            "score": score,
            "best": best,
        }
        # a trial of a search may yet be tested
        self._settled = row if (self.directory / RESULT).is_file() else {}
        return row

    def _state(self) -> tuple[str, str]:
        """In a word and in words, as the files of the directory have it."""
        try:
            if (self.directory / RESULT).is_file():
                return "finished", f"test {format_score(read_result(self.directory))}"
            job = found_job(self.directory)
            found = standing(job)
            if found.state == "finished" and read_trial(self.directory):
                return found.state, describe(self.directory)
        except (FslError, OSError) as error:
            return "unreadable", str(error)
        if found.state not in ("waiting", "queued"):
            return found.state, found.error or found.where
        silent = time.time() - self._written()
        if self.step and silent > SILENCE:
            return "stopped", f"nothing written for {_ago(silent)}"
        begun = self.step or (self.directory / "checkpoints").is_dir()
        if begun and silent <= SILENCE:
            done = self.steps is not None and self.step >= self.steps
            return "running", "judging" if done else ""
        return found.state, found.where

    def _written(self) -> float:
        """When it last wrote."""
        times = [0.0]
        for name in (METRICS, "checkpoints"):
            with suppress(OSError):
                times.append((self.directory / name).stat().st_mtime)
        return max(times)


class Following:
    """All runs of a folder: one run, the runs of a sweep or a search, or a folder of either.

    Runs that come later are followed as well.
    RunError if there is none.
    """

    def __init__(self, folder: Path):
        self.folder, self.title = folder, printable(folder.absolute().name or folder)
        self.runs: list[Followed] = []
        self._known: set[Path] = set()
        self.look()
        if not self.runs:
            found = "no runs here" if folder.is_dir() else "no such folder"
            raise RunError(f"{folder}: {found}. A run, a sweep, a search, or a folder of runs")

    def look(self) -> None:
        """Read what is new."""
        for directory in find_runs(self.folder):
            if directory not in self._known:
                self._known.add(directory)
                name = name_within(self.folder, directory)
                self.runs.append(Followed(directory, name, len(self.runs)))
        for run in self.runs:
            run.look()

    def told(self, wanted: Iterable[int] | None = None) -> dict[str, Any]:
        """What a page shows: a row for each run, and the curves of those that are wanted.

        wanted: numbers of runs. None: those that run, then those that ended last.
        """
        rows = [run.row() for run in self.runs]
        counts = Counter(row["state"] for row in rows)
        shown = list(self._chosen(rows) if wanted is None else wanted)
        runs = [self.runs[i] for i in shown if 0 <= i < len(self.runs)]
        return {
            "title": self.title,
            "told": ", ".join(f"{number} {state}" for state, number in counts.most_common()),
            "ended": not any(row["state"] in ("running", "queued", "waiting") for row in rows),
            "runs": rows,
            "shown": [run.number for run in runs],
            "charts": list(_charts(runs)),
        }

    def _chosen(self, rows: list[dict[str, Any]]) -> list[int]:
        with_curves = [i for i, run in enumerate(self.runs) if run.loss.bins or run.validations]
        order = sorted(
            with_curves,
            key=lambda i: (rows[i]["state"] != "running", -self.runs[i]._written()),
        )
        return sorted(order[:CURVES])


def find_runs(folder: Path) -> list[Path]:
    """Directories of runs: the folder itself, or those in it and in the sweeps in it."""
    patterns = ("*", "runs/*", "*/runs/*")
    candidates = [folder] if (folder / RECIPE).is_file() else []
    candidates = candidates or [path for each in patterns for path in sorted(folder.glob(each))]
    return [p for p in candidates if (p / RECIPE).is_file() and (p / ENVIRONMENT).is_file()]


def name_within(folder: Path, directory: Path) -> str:
    """A run's name in a table: where it lies, without `runs` and the digest of a cell."""
    parts = [part for part in directory.relative_to(folder).parts if part != "runs"]
    own = found_job(directory).title if parts else directory.absolute().name
    return " / ".join([*parts[:-1], own])


def _charts(runs: list[Followed]) -> Iterator[dict[str, Any]]:
    """Loss, and each score that there is: lines of training, and points of validation."""
    lines = [{"number": run.number, "points": run.loss.points()} for run in runs]
    yield {"title": "Loss of training episodes", "lines": lines}
    for metric in SCORES:
        own = [run for run in runs if run.metric == metric]
        if own:
            training = [{"number": run.number, "points": run.score.points()} for run in own]
            judged = [{"number": run.number, "points": run.validations} for run in own]
            title = f"Score ({metric}) of training episodes, and of validation (points)"
            yield {"title": title, "lines": training, "points": judged}


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""A run that is a trial of a search: trained and validated, and not tested until it is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fsl_core.errors import DivergedError, TrainingError
from fsl_core.runs.files import (
    METRICS,
    RESULT,
    Record,
    Whole,
    is_file,
    parse_record,
    read_json,
    to_json,
    write_atomically,
)
from fsl_core.runs.run import Run

TRIAL, VALIDATED = "trial.json", "validated.json"


class _Trial(Record):
    """What trial.json holds."""

    method: str
    numbers: list[Whole]
    parameters: dict[str, Any]
    pruned: Whole | None = None
    test: bool = False


class _Validated(Record):
    """What validated.json holds: a score, or why training has failed."""

    failed: str = ""
    metric: str = ""
    score: float | None = None
    interval: float = 0.0
    step: Whole = 0


class TrialRecord(NamedTuple):
    """What the directory of a trial says of it.

    numbers: of the trials that have these parameters; the first one made the run.
    pruned:  the outer step of the validation after which the search ended it, or None.
    test:    whether it was chosen, and so is judged on test episodes.
    """

    method: str
    numbers: list[int]
    parameters: dict[str, Any]
    pruned: int | None = None
    test: bool = False

    def write(self, directory: Path) -> None:
        write_atomically(directory / TRIAL, to_json(self._asdict(), TRIAL, indent=2) + "\n")


class Validated(NamedTuple):
    """How the training of a trial ended. failed: why it did; then there is no score."""

    failed: str
    metric: str
    score: float | None
    interval: float
    step: int


def read_trial(directory: Path) -> TrialRecord | None:
    """None for a run that is no trial. RunError if the file is damaged."""
    path = directory / TRIAL
    if not is_file(path):
        return None
    found = _Trial.model_validate(read_json(path, _Trial))
    return TrialRecord(found.method, found.numbers, found.parameters, found.pruned, found.test)


def read_validated(directory: Path) -> Validated | None:
    """None while training has not ended."""
    path = directory / VALIDATED
    if not is_file(path):
        return None
    found = _Validated.model_validate(read_json(path, _Validated))
    return Validated(found.failed, found.metric, found.score, found.interval, found.step)


def validation_scores(directory: Path, metric: str) -> dict[int, float]:
    """The validation scores of a run so far, by outer step."""
    try:
        text = (directory / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    records = (parse_record(line) for line in text.splitlines() if '"validation"' in line)
    return {r["step"]: r[metric] for r in records if r.get("split") == "validation"}


def is_done(directory: Path) -> bool:
    """Whether nothing is left to compute: there is a result, or all that a trial needs."""
    if (directory / RESULT).is_file():
        return True
    trial = read_trial(directory)
    return trial is not None and not trial.test and is_trained(directory)


def is_trained(directory: Path) -> bool:
    """Whether the training of a trial has ended, however it did."""
    trial = read_trial(directory)
    pruned = trial is not None and trial.pruned is not None
    return pruned or (directory / VALIDATED).is_file()


def describe(directory: Path) -> str:
    """How a trial ended, in words."""
    trial, found = read_trial(directory), read_validated(directory)
    if trial is not None and trial.pruned is not None:
        return f"pruned at step {trial.pruned}"
    if found is None:
        return "running"
    if found.failed:
        return f"failed: {found.failed}"
    score = f"{found.metric} {found.score:.4f} ± {found.interval:.4f}"
    return f"validation {score} at step {found.step}"


def waits(run: Run) -> bool:
    """Whether a run is a trial that is not judged on test episodes, or not yet."""
    if run.directory is None:
        return False
    trial = read_trial(run.directory)
    return trial is not None and not trial.test


def keep_validation(run: Run) -> dict[str, Any]:
    """Write how the weights that would be judged did in validation; returns it as a result."""
    metric = run.experiment.source.task.metric
    records = [r for r in run.read_metrics() if r.get("split") == "validation"]
    if run.recipe.sections.evaluate.checkpoint == "best" and run.best:
        records = [r for r in records if r["step"] == run.best["step"]]
    if not records:
        raise TrainingError(f"{run.folder}: never validated. outer.validate_every above 0")
    last = records[-1]
    _write(run, score=last[metric], interval=last["interval"], step=last["step"])
    return {
        "split": "validation",
        "metric": metric,
        metric: last[metric],
        "interval": last["interval"],
        "episodes": run.recipe.sections.outer.validate_episodes,
    }


def keep_failure(run: Run, error: DivergedError) -> None:
    """Write that training cannot go on: the outcome of these parameters, however often tried."""
    _write(run, failed=" ".join(str(error).split()))


def _write(run: Run, **found: Any) -> None:
    if run.ranks.first:
        told = _Validated(metric=run.experiment.source.task.metric, **found)
        text = to_json(told.model_dump(), VALIDATED, indent=2)
        write_atomically(run.folder / VALIDATED, text + "\n")

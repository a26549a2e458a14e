"""The hooks of an observer: each run in Weights & Biases or Trackio, as `FSL_TRACKER` says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsl_core as fsl
from fsl_wandb.tracked import LIBRARIES, TrackedRun

__all__ = [
    "FSL_HOOK_API",
    "FSL_TRACKERS",
    "fsl_evaluated",
    "fsl_run_finished",
    "fsl_run_started",
    "fsl_run_stopped",
    "fsl_step_finished",
]

FSL_HOOK_API = 1
FSL_TRACKERS = LIBRARIES
TRACKER = "FSL_TRACKER"
"""Environment variable with the names of trackers, such as `wandb` or `mlflow,trackio`."""

_tracked: dict[Path, list[TrackedRun]] = {}
"""What follows each run, by its directory."""


@fsl.hookimpl
def fsl_run_started(run: fsl.RunView) -> None:
    """Begin a tracked run, or go on with the one that this run had before."""
    wanted = os.environ.get(TRACKER, "").replace(",", " ").split()
    if run.directory is None:
        return
    _tracked[run.directory] = []
    for name in sorted(set(LIBRARIES).intersection(wanted)):
        tracked = TrackedRun(name, run, run.directory)
        _tracked[run.directory].append(tracked)
        for record in run.metrics() if run.step else ():  # steps done without this plugin
            split = str(record.get("split", "train"))
            numbers = {key: value for key, value in record.items() if key not in ("step", "split")}
            tracked.log(split, numbers, record["step"])
        tracked.note()


@fsl.hookimpl
def fsl_step_finished(run: fsl.RunView, step: int, metrics: dict[str, float]) -> None:
    for tracked in _of(run):
        tracked.log("train", metrics, step)
        if step % run.recipe["outer"]["checkpoint_every"] == 0:
            tracked.note()  # a run resumes from here


@fsl.hookimpl
def fsl_evaluated(run: fsl.RunView, split: str, result: dict[str, Any]) -> None:
    metric = result["metric"]
    after = [f"{metric}_after_{k}" for k in range(len(result)) if f"{metric}_after_{k}" in result]
    numbers = {key: result[key] for key in (metric, "interval", "loss", *after)}
    for tracked in _of(run):
        tracked.log(split, numbers, run.step)
        tracked.note()


@fsl.hookimpl
def fsl_run_finished(run: fsl.RunView) -> None:
    for tracked in _of(run):
        tracked.keep_figures(fsl.run_figures(run), run.step)
        tracked.keep_files()
        tracked.end(0)
    _forget(run)


@fsl.hookimpl
def fsl_run_stopped(run: fsl.RunView, interrupted: bool) -> None:
    for tracked in _of(run):
        tracked.end(130 if interrupted else 1)
    _forget(run)


def _of(run: fsl.RunView) -> list[TrackedRun]:
    return _tracked.get(run.directory, []) if run.directory else []


def _forget(run: fsl.RunView) -> None:
    if run.directory:
        _tracked.pop(run.directory, None)

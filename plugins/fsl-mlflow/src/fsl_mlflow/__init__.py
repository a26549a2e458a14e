"""The hooks of an observer: each run as a run of MLflow, where `FSL_TRACKER` names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsl_core as fsl
from fsl_mlflow.tracked import TrackedRun

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
FSL_TRACKERS = ("mlflow",)
TRACKER = "FSL_TRACKER"
"""Environment variable with the names of trackers, such as `mlflow` or `mlflow,wandb`."""

_tracked: dict[Path, TrackedRun] = {}
"""The open run of MLflow of each run, by its directory."""


@fsl.hookimpl
def fsl_run_started(run: fsl.RunView) -> None:
    """Begin a run of MLflow, or go on with the one that this run had before."""
    wanted = os.environ.get(TRACKER, "").replace(",", " ").split()
    if run.directory is None or "mlflow" not in wanted:
        return
    tracked = _tracked[run.directory] = TrackedRun(run, run.directory)
    for record in run.metrics() if run.step else ():  # steps done without this plugin
        split = str(record.get("split", "train"))
        numbers = {key: value for key, value in record.items() if key not in ("step", "split")}
        tracked.log(split, numbers, record["step"])
    tracked.flush()


@fsl.hookimpl
def fsl_step_finished(run: fsl.RunView, step: int, metrics: dict[str, float]) -> None:
    if tracked := _of(run):
        tracked.log("train", metrics, step)
        if step % run.recipe["outer"]["checkpoint_every"] == 0:
            tracked.flush()  # a run resumes from here


@fsl.hookimpl
def fsl_evaluated(run: fsl.RunView, split: str, result: dict[str, Any]) -> None:
    if tracked := _of(run):
        metric = result["metric"]
        tracked.log(split, {key: result[key] for key in (metric, "interval", "loss")}, run.step)
        after = (result.get(f"{metric}_after_{k}") for k in range(len(result)))
        for k, score in enumerate(score for score in after if score is not None):
            tracked.log(f"{split} by inner step", {metric: score}, k)
        tracked.flush()


@fsl.hookimpl
def fsl_run_finished(run: fsl.RunView, result: dict[str, Any]) -> None:
    if (tracked := _of(run)) and run.directory:
        tracked.keep_figures(fsl.run_figures(run))
        tracked.keep_files(run.directory)
        tracked.end("FINISHED")
        del _tracked[run.directory]


@fsl.hookimpl
def fsl_run_stopped(run: fsl.RunView, interrupted: bool, reason: str) -> None:
    if (tracked := _of(run)) and run.directory:
        tracked.say("stopped", reason)
        tracked.end("KILLED" if interrupted else "FAILED")
        del _tracked[run.directory]


def _of(run: fsl.RunView) -> TrackedRun | None:
    return _tracked.get(run.directory) if run.directory else None

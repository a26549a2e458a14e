"""A one-file plugin: how long a run trains until a validation reaches an accuracy; then it ends.

FSL_STOPWATCH is JSON: {"accuracy": 0.9, "out": FILE}. FILE gets the figures after each validation.
Seconds are the median from one outer step to the next, drawing included and validations not, times
the steps: what else the machine does now and then falls out.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

import fsl_core as fsl

_wanted = json.loads(os.environ.get("FSL_STOPWATCH", "{}"))
_steps: list[float] = []
_clock = {"since": 0.0}


@fsl.hookimpl
def fsl_run_started(run: fsl.RunView) -> None:
    _clock["since"] = time.perf_counter()


@fsl.hookimpl
def fsl_step_finished(run: fsl.RunView, step: int, metrics: dict[str, float]) -> None:
    now = time.perf_counter()
    _steps.append(now - _clock["since"])
    _clock["since"] = now


@fsl.hookimpl
def fsl_evaluated(run: fsl.RunView, split: str, result: dict[str, Any]) -> None:
    if split != "validation":
        return
    found = {
        "seconds": median(_steps) * len(_steps),
        "steps": run.step,
        "accuracy": result["accuracy"],
        "reached": result["accuracy"] >= _wanted["accuracy"],
        "episode_set": result["episode_set"],
        "execution": run.execution,
    }
    Path(_wanted["out"]).write_text(json.dumps(found), encoding="utf-8")
    if found["reached"]:
        os.kill(os.getpid(), signal.SIGTERM)
    _clock["since"] = time.perf_counter()

"""A one-file plugin: how long a run trains until a validation reaches an accuracy; then it ends.

FSL_STOPWATCH is JSON: {"accuracy": 0.9, "out": FILE}. FILE gets the figures after each validation.
Counted is from one outer step to the next, drawing included; validations are not.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import fsl_core as fsl

_wanted = json.loads(os.environ.get("FSL_STOPWATCH", "{}"))
_clock = {"seconds": 0.0, "since": 0.0}


@fsl.hookimpl
def fsl_run_started(run: fsl.RunView) -> None:
    _clock.update(seconds=0.0, since=time.perf_counter())


@fsl.hookimpl
def fsl_step_finished(run: fsl.RunView, step: int, metrics: dict[str, float]) -> None:
    now = time.perf_counter()
    _clock.update(seconds=_clock["seconds"] + now - _clock["since"], since=now)


@fsl.hookimpl
def fsl_evaluated(run: fsl.RunView, split: str, result: dict[str, Any]) -> None:
    if split != "validation":
        return
    found = {
        "seconds": _clock["seconds"],
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

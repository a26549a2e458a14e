"""Curves, recipe and result of every run as TensorBoard event files, written while it trains.

The hooks of an observer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import fsl_core as fsl
from fsl_tensorboard.events import EventFile

__all__ = [
    "FSL_HOOK_API",
    "fsl_evaluated",
    "fsl_run_finished",
    "fsl_run_started",
    "fsl_step_finished",
]

FSL_HOOK_API = 1
FOLDER = "tensorboard"

_files: dict[int, EventFile] = {}
"""The open file of each run, by the id of the run; closed with the run at the latest."""


@fsl.hookimpl
def fsl_run_started(run: Any) -> None:
    """Begin an event file.

    TensorBoard forgets what an earlier file says of steps that are done again.
    """
    _close(id(run))
    folder = run.directory / FOLDER
    begun = folder.is_dir()
    file = _files[id(run)] = EventFile(folder, first_step=run.step + 1 if run.step else 0)
    weakref.finalize(run, _abandon, id(run))
    if begun:
        return
    recipe = (run.directory / "recipe.yaml").read_text(encoding="utf-8")
    file.text("recipe", f"```yaml\n{recipe}```", step=0)
    if run.step:  # steps done before this plugin was installed
        for record in run.read_metrics():
            values = {key: value for key, value in record.items() if key not in ("step", "split")}
            file.scalars(record.get("split", "train"), values, record["step"])
    file.flush()


@fsl.hookimpl
def fsl_step_finished(run: Any, step: int, metrics: dict[str, float]) -> None:
    file = _files[id(run)]
    file.scalars("train", metrics, step)
    if step % run.recipe.sections.outer.checkpoint_every == 0:
        file.flush()  # a run resumes from here: what came before must be on disk


@fsl.hookimpl
def fsl_evaluated(run: Any, split: str, result: dict[str, Any]) -> None:
    file = _files.get(id(run))
    if file is None:
        return  # judged without having been trained here
    metric = result["metric"]
    file.scalars(split, {key: result[key] for key in (metric, "interval", "loss")}, run.step)
    for k, score in enumerate(_after_steps(result)):
        file.scalars(split, {f"{metric}_by_inner_step": score}, k)
    file.flush()


@fsl.hookimpl
def fsl_run_finished(run: Any, result: dict[str, Any]) -> None:
    file = _files[id(run)]
    rows = [f"| {key} | {value} |" for key, value in result.items()]
    lines = [f"**{_score(result)}**", "", "| figure | value |", "|---|---|", *rows]
    file.text("result", "\n".join(lines), run.step)
    measured = {f"test/{key}": result[key] for key in (result["metric"], "interval")}
    file.hyperparameters(dict(_options(run.recipe.resolved())), measured, run.step)
    _close(id(run))


def _close(key: int) -> None:
    if key in _files:
        _files.pop(key).close()


def _abandon(key: int) -> None:
    """A run that ended by an error, such as a full disk, has said so: this would say it again."""
    with suppress(OSError):
        _close(key)


def _score(result: dict[str, Any]) -> str:
    metric = result["metric"]
    score = f"{metric} {result[metric]:.4f} ± {result['interval']:.4f}"
    return f"{score} (95 % interval, {result['episodes']} episodes)"


def _after_steps(result: dict[str, Any]) -> list[float]:
    keys = (f"{result['metric']}_after_{k}" for k in range(len(result)))
    return [result[key] for key in keys if key in result]


def _options(
    section: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    """Every option of a recipe by its key path, such as `adapter.inner_lr`.

    Lists are given as text; options that are absent are left out.
    """
    for key, value in section.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _options(value, name)
        elif value is not None:
            yield name, value if isinstance(value, bool | int | float | str) else str(value)

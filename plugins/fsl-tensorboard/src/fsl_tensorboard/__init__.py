"""The hooks of an observer: curves, recipe and result of each run as TensorBoard event files."""

from __future__ import annotations

import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsl_core as fsl
from fsl_tensorboard.events import EventFile

__all__ = [
    "FSL_HOOK_API",
    "fsl_evaluated",
    "fsl_run_finished",
    "fsl_run_started",
    "fsl_run_stopped",
    "fsl_step_finished",
]

FSL_HOOK_API = 1
FOLDER = "tensorboard"

_files: dict[Path, EventFile] = {}
"""The open file of each run, by its directory; closed with its learner at the latest.

So that the file of a run is closed too if this plugin was left out of the rest of it.
"""


@fsl.hookimpl
def fsl_run_started(run: fsl.RunView) -> None:
    """Begin an event file, for a run that writes files.

    TensorBoard forgets what an earlier one says of steps that are done again.
    """
    if run.directory is None:
        return
    _close(run.directory)
    folder = run.directory / FOLDER
    begun = folder.is_dir()
    file = EventFile(folder, first_step=run.step + 1 if run.step else 0)
    _files[run.directory] = file
    weakref.finalize(run.learner, _abandon, run.directory, file)
    if begun:
        return
    file.text(
        "recipe",
        f"```yaml\n{(run.directory / 'recipe.yaml').read_text(encoding='utf-8')}```",
        step=0,
    )
    for record in run.metrics() if run.step else ():  # steps done before this plugin was installed
        split = record.get("split", "train")
        file.scalars(
            split,
            {key: value for key, value in record.items() if key not in ("step", "split")},
            record["step"],
        )
    file.flush()


@fsl.hookimpl
def fsl_step_finished(run: fsl.RunView, step: int, metrics: dict[str, float]) -> None:
    file = _file_of(run)
    if file is None:
        return
    file.scalars("train", metrics, step)
    if step % run.recipe["outer"]["checkpoint_every"] == 0:
        file.flush()  # a run resumes from here: what came before must be on disk


@fsl.hookimpl
def fsl_evaluated(run: fsl.RunView, split: str, result: dict[str, Any]) -> None:
    file = _file_of(run)
    if file is None:
        return  # judged without having been trained here
    metric = result["metric"]
    file.scalars(split, {key: result[key] for key in (metric, "interval", "loss")}, run.step)
    for k, score in enumerate(_after_steps(result)):
        file.scalars(split, {f"{metric}_by_inner_step": score}, k)
    file.flush()


@fsl.hookimpl
def fsl_run_finished(run: fsl.RunView, result: dict[str, Any]) -> None:
    file = _file_of(run)
    if run.directory is None or file is None:
        return
    rows = [f"| {key} | {value} |" for key, value in result.items() if key != "per_class"]
    lines = [f"**{_score(result)}**", "", "| figure | value |", "|---|---|", *rows]
    file.text("result", "\n".join(lines), run.step)
    measured = {f"test/{key}": result[key] for key in (result["metric"], "interval")}
    file.hyperparameters(run.options, measured, run.step)
    for name, png in fsl.run_figures(run).items():
        file.picture(f"figures/{name}", png, run.step)
    _close(run.directory)


@fsl.hookimpl
def fsl_run_stopped(run: fsl.RunView) -> None:
    if (file := _file_of(run)) and run.directory:
        _abandon(run.directory, file)


def _file_of(run: fsl.RunView) -> EventFile | None:
    """None where the run writes no files, or was not trained in this process."""
    return _files.get(run.directory) if run.directory else None


def _close(directory: Path) -> None:
    if directory in _files:
        _files.pop(directory).close()


def _abandon(directory: Path, file: EventFile) -> None:
    """Close the file of a run that ended early, unless a later run has taken its place.

    The run has said what is wrong, such as a full disk: this would say it again.
    """
    if _files.get(directory) is file:
        with suppress(OSError):
            _close(directory)


def _score(result: dict[str, Any]) -> str:
    metric = result["metric"]
    score = f"{metric} {result[metric]:.4f} ± {result['interval']:.4f}"
    return f"{score} (95 % interval, {result['episodes']} episodes)"


def _after_steps(result: dict[str, Any]) -> list[float]:
    keys = (f"{result['metric']}_after_{k}" for k in range(len(result)))
    return [result[key] for key in keys if key in result]

"""Starts the runs of a sweep, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fsl_core.config.matrix import Cell
from fsl_core.engine.environment import threads_of
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.opening import describe_environment, prepare_run
from fsl_core.sweeping.processes import Processes
from fsl_core.sweeping.schedule import Job, run_jobs
from fsl_core.text import name_of

CELLS = "fsl_core.cli.cells"
"""The module whose process runs cells; named, because it lies to the right of this room."""


def start(
    queue: Sequence[Job],
    loaded: Loaded,
    device: str,
    at_once: int,
    no_plugin: Sequence[str],
    show: Callable[[], None],
) -> str:
    """Run the jobs that are not finished; returns why none was forked, or nothing.

    at_once: runs at a time; cores are shared among them.    show: called when something changed.
    """
    options = ["--device", device, *(word for name in no_plugin for word in ("--no-plugin", name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(at_once))}
    processes = Processes(CELLS, no_plugin, environment)
    run_jobs(queue, at_once, _preparer(loaded, device, at_once), processes, options, show)
    return processes.reason


def _preparer(loaded: Loaded, device: str, at_once: int) -> Callable[[Job], None]:
    environment = {
        **describe_environment(loaded.plugins),
        "threads": threads_of(at_once),
        "device": device,
        "plugin_files": loaded.files,
    }

    def prepare(job: Job) -> None:
        prepare_run(job.directory, job.cell.recipe, {"recipe": _run_name(job.cell), **environment})

    return prepare


def _run_name(cell: Cell) -> str:
    return f"{name_of(Path(cell.recipe.document.source))}: {cell.title}"

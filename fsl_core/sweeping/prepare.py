"""Makes the run directories of a sweep. All that a run needs is in its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fsl_core.config.matrix import Cell
from fsl_core.data.work import each
from fsl_core.errors import FslError, RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.environment import describe_environment
from fsl_core.runs.files import IN_USE, RECIPE
from fsl_core.runs.opening import prepare_run
from fsl_core.sweeping.jobs import Job
from fsl_core.text import name_of


def prepare(jobs: Sequence[Job], loaded: Loaded, device: str, threads: int, sweep: str) -> None:
    """Make the directory of every run that has none, so that `fsl resume` begins it.

    sweep: its name, by which observers group its runs.
    A run whose directory cannot be made has failed, and the others are made.
    """
    environment = {
        **describe_environment(loaded.plugins),
        "threads": threads,
        "device": device,
        "plugin_files": loaded.files,
        "sweep": sweep,
    }
    for job in each(jobs, "preparing runs"):
        try:
            while not (job.directory / RECIPE).is_file():
                with _another_may_be_quicker():
                    named = {"recipe": _run_name(job.cell), **environment}
                    prepare_run(job.directory, job.cell.recipe, named)
        except (FslError, OSError) as error:
            if not (job.directory / RECIPE).is_file():
                job.state, job.error = "failed", " ".join(str(error).split())


@contextmanager
def _another_may_be_quicker() -> Iterator[None]:
    """Another sweep that makes this directory just now soon writes the recipe, or has ended."""
    try:
        yield
    except RunError as error:
        if IN_USE not in str(error):
            raise
        time.sleep(0.05)


def _run_name(cell: Cell) -> str:
    return f"{name_of(Path(cell.recipe.document.source))}: {cell.title}"

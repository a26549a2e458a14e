"""What to do if a machine's memory does not hold what a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fsl_core.engine.memory import is_out_of_memory
from fsl_core.engine.modes import at_a_time, trained
from fsl_core.errors import RunError

if TYPE_CHECKING:
    from fsl_core.runs.run import Run


@contextmanager
def enough_memory(run: Run, where: str, error: type[RunError]) -> Iterator[None]:
    """Within this context, a lack of memory becomes one line that says which option to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as caught:
        if not is_out_of_memory(caught):
            raise
        raise error(f"{where}: not enough memory. {_remedy(run)}") from caught


def _remedy(run: Run) -> str:
    tasks = run.recipe.sections.outer.meta_batch_size
    execution = run.choice.execution if run.choice else None
    if execution is None or execution.mode == "loop":
        several = execution is not None and execution.workers > 1
        fewer = "execution.workers: 1, which takes one task at a time, or a" if several else "A"
        return f"{fewer} smaller backbone, smaller items, or fewer of them in an episode"
    at_once = at_a_time(execution, tasks, trained(run.experiment.learner))
    if at_once == 1:
        return "A smaller backbone, smaller items, or fewer of them in an episode"
    chunk = max(1, at_once // 4)
    return f"execution.chunk: {chunk}, because now it takes {at_once} tasks at a time"

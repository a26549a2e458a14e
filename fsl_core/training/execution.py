"""How a run's meta-batches are computed: chosen when training starts, kept with the run, the same after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsl_core.engine.choice import Choice, choose, settle
from fsl_core.engine.execution import Execution
from fsl_core.training.files import EXECUTION, to_json, write_atomically
from fsl_core.training.seeding import seed_torch

if TYPE_CHECKING:
    from fsl_core.training.run import Run


def choose_execution(run: Run) -> Choice:
    """What the run has used so far, else what its recipe names or a measurement finds."""
    if run.step > 0 and run.execution is not None:
        return run.execution
    choice = _of_no_steps(run) or _named(run) or _measured(run)
    path = run.directory / EXECUTION
    write_atomically(path, to_json(choice.as_dict(), EXECUTION, indent=2) + "\n")
    return choice


def workers_of(run: Run) -> int:
    """Tasks that an evaluation may compute at once, as training did."""
    return run.execution.execution.workers if run.execution else 1


def _of_no_steps(run: Run) -> Choice | None:
    return None if run.steps else Choice(_options(run, "loop"), "nothing is trained", {})


def _named(run: Run) -> Choice | None:
    wanted = run.recipe.sections.execution
    if wanted.mode == "auto":
        return None
    return settle(_options(run, wanted.mode), run.experiment.learner)


def _measured(run: Run) -> Choice:
    experiment, outer = run.experiment, run.recipe.sections.outer
    seed = run.recipe.sections.seed
    experiment.learner.train()
    experiment.learner.adapter.on_progress(run.progress(run.step))
    episodes = experiment.source.batch("train", range(outer.meta_batch_size), seed)
    seed_torch(seed, "measurement")
    free = run.recipe.sections.execution.workers is None
    parts = (experiment.learner, experiment.weighting, episodes, experiment.source.task.loss)
    return choose(_options(run, "loop"), *parts, steps=run.steps - run.step, measure_workers=free)


def _options(run: Run, mode: str) -> Execution:
    wanted = run.recipe.sections.execution
    return Execution(
        mode, wanted.workers or 1, wanted.chunk, wanted.precision, wanted.checkpoint_gradients
    )

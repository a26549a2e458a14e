"""What a run of a recipe takes of a machine's memory, before it is begun."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from fsl_core.assembly.experiment import Experiment
from fsl_core.assembly.trials.made_up import made_up_episodes
from fsl_core.data.groups import Group
from fsl_core.data.work import each
from fsl_core.engine.choice import Setting, why_not_vectorized
from fsl_core.engine.execution import Mode
from fsl_core.engine.peak import peak_of_meta_batch
from fsl_core.episode import Episode, LabelledSet
from fsl_core.training.mode_choice import execution_of


def predicted_peaks(experiment: Experiment) -> list[tuple[str, int]]:
    """Bytes that the process of a run holds at its fullest, by each execution that it may take.

    What this process holds now, the optimizer's numbers and a meta-batch of made-up items; without
    the data.
    """
    setting, held = _setting(experiment), _resident() + _of_optimizer(experiment)
    mode = experiment.recipe.sections.execution.mode
    modes: list[Mode] = ["loop", "vmap"] if mode == "auto" else [mode]
    if why_not_vectorized(experiment.learner):
        modes = ["loop"]
    executions = [execution_of(experiment, mode) for mode in modes]
    return [
        (str(execution), held + peak_of_meta_batch(setting, execution))
        for execution in each(executions, "measuring memory")
    ]


def _setting(experiment: Experiment) -> Setting:
    source, tasks = experiment.source, experiment.recipe.sections.outer.meta_batch_size
    one, two = made_up_episodes(
        source.task, 2, device=experiment.device, vocabulary=source.vocabulary
    )

    def both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.stack([first, second])

    support = LabelledSet(both(one.support.x, two.support.x), both(one.support.y, two.support.y))
    query = LabelledSet(both(one.query.x, two.query.x), both(one.query.y, two.query.y))
    group = Group(source.task, Episode(support, query, both(one.id, two.id)), tuple(range(tasks)))
    loss, rule = source.task.loss, experiment.fitting
    return Setting(experiment.learner, experiment.weighting, [group], loss, rule=rule)


def _of_optimizer(experiment: Experiment) -> int:
    """A gradient and two averages for each trained number: what Adam keeps, and others nearly."""
    trained = (p for p in experiment.learner.parameters() if p.requires_grad)
    return 3 * sum(p.numel() * p.element_size() for p in trained)


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        line = next(line for line in lines if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return 0

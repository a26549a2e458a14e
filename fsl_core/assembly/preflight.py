"""One made-up episode before a run: what would end in a wrong number or a traceback is one line.

The parts of a recipe are tried on copies, with items that nobody drew, so no data is read and
nothing is changed. What is measured, and not what a class is called, decides. The folder
`trials` holds what is tried, a file for each part.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fsl_core.assembly.experiment import Experiment
from fsl_core.assembly.trials.backbone import try_forward
from fsl_core.assembly.trials.evaluation import try_evaluation
from fsl_core.assembly.trials.kept import check_kept
from fsl_core.assembly.trials.training import try_training
from fsl_core.assembly.trials.trial import Trial
from fsl_core.assembly.trials.weights import try_weighting
from fsl_core.data.work import reported
from fsl_core.errors import PluginError

FEW = 2
"""Queries per class: enough to see a wrong shape, and quick."""


def preflight(experiment: Experiment) -> None:
    """Try a recipe's parts on made-up episodes as training and evaluation use them.

    Raises PluginError, one line, for the first fault: the part, its class and where it comes
    from, what was found, what would fit. Random states are put back, and the experiment stays as
    it is.
    """
    wanted = experiment.source.task.n_query
    with reported("trying the parts", None), _random_states_put_back(experiment.device):
        try:
            _try_all(Trial(experiment, min(FEW, wanted)))
        except PluginError:
            if wanted <= FEW:
                raise
            # A part may be made for the recipe's number of queries and no other.
            _try_all(Trial(experiment, wanted))


def preflight_all(experiments: Iterable[Experiment]) -> None:
    """`preflight` of several recipes. Learners that are named alike are tried once."""
    tried = set()
    for experiment in experiments:
        sections = experiment.recipe.resolved()
        named = [sections[key] for key in ("episodes", "backbone", "adapter", "evaluate")]
        outer = sections["outer"]
        named += [outer["hypergradient"], outer["steps"] > 0]
        learner = json.dumps(named, sort_keys=True)
        if learner not in tried:
            preflight(experiment)
            tried.add(learner)
        else:
            with _random_states_put_back(experiment.device):
                try_weighting(Trial(experiment, FEW))


def _try_all(trial: Trial) -> None:
    """Raise at the first fault. The backbone comes first: its faults would look like others'."""
    moved_by_forward = try_forward(trial)
    trains = trial.experiment.recipe.sections.outer.steps > 0
    moved = try_training(trial, moved_by_forward) if trains else None
    try_evaluation(trial)
    if moved is not None:
        check_kept(trial, moved)
        try_weighting(trial)


@contextmanager
def _random_states_put_back(device: torch.device) -> Iterator[None]:
    """Torch's, NumPy's and Python's own: plugins may draw from any of them.

    Without this, whether a recipe is tried first would change the numbers of the run after it.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)

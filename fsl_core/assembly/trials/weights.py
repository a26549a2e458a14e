"""The task weighting, in a trial: weights of a made-up meta-batch."""

from __future__ import annotations

import copy

import torch

from fsl_core.assembly.trials.trial import Trial
from fsl_core.data.seeding import seed_torch
from fsl_core.engine import soundness
from fsl_core.weighting import Outcomes


def try_weighting(trial: Trial) -> None:
    weighting = copy.deepcopy(trial.experiment.weighting).train()
    outcomes = _made_up_outcomes(trial)
    size = len(outcomes.losses)
    seed_torch("preflight")
    weights = trial.call("weighting", "weigh", lambda: weighting.weigh(outcomes))
    trial.require("weighting", soundness.wrong_output("weights", weights, (size,), None))
    if weights.requires_grad:
        value = trial.call("weighting", "objective", lambda: weighting.objective(weights, outcomes))
        trial.require("weighting", soundness.wrong_loss(value))
        trial.call("weighting", "gradient of its objective", value.backward)


def _made_up_outcomes(trial: Trial) -> Outcomes:
    experiment = trial.experiment
    size = experiment.recipe.sections.outer.meta_batch_size
    columns = sum(p.numel() for p in experiment.learner.parameters() if p.requires_grad)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(size, generator=generator).to(trial.device)
    gradients = torch.randn(size, columns, generator=generator).to(trial.device)
    ids = torch.arange(size, device=trial.device) % (experiment.source.tasks or size)
    seen = gradients if "gradients" in experiment.weighting.needs else None
    return Outcomes(losses, seen, ids)

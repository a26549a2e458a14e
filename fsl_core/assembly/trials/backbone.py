"""The backbone alone, in a trial: shape of its features, and what a forward pass moves."""

from __future__ import annotations

import torch
from torch import Tensor

from fsl_core.assembly.trials.trial import Trial
from fsl_core.engine import soundness
from fsl_core.nn.norms import support_reference


def try_forward(trial: Trial) -> set[str]:
    """One forward pass in training mode; the names of what it moved that a checkpoint keeps."""
    backbone, x = trial.copy().train().backbone, trial.episodes[0].support.x.clone()
    claimed = getattr(backbone, "feature_dim", 0)  # that it has one was looked at when it was built
    before = soundness.copied(soundness.kept(backbone))
    given = x.clone()

    def call() -> object:
        with support_reference(x):
            return backbone(x)

    features = trial.call("backbone", "forward", call)
    if isinstance(features, Tensor) and features.shape[:1] + features.shape[2:] == (len(x),):
        _require_feature_dim(trial, features.shape[1], claimed)
    wrong = soundness.wrong_output("forward: features", features, (len(x), claimed), None)
    trial.require("backbone", wrong)
    if not torch.equal(x, given):
        trial.refuse(
            "backbone",
            "forward changes the items it is given, which the other tasks and the evaluation "
            "share. A new tensor: no operation in place on the input",
        )
    return set(soundness.changed(before, soundness.kept(backbone)))


def _require_feature_dim(trial: Trial, found: int, claimed: int) -> None:
    if found != claimed:
        trial.refuse(
            "backbone",
            f"feature_dim is {claimed}, and forward returned features of length {found}. "
            f"feature_dim = {found}, or features of that length",
        )

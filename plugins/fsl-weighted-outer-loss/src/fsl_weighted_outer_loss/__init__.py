"""Task weightings for the outer loop of fsl-core."""

import fsl_core as fsl
from fsl_weighted_outer_loss.conflicts import ConflictFree
from fsl_weighted_outer_loss.drawn import Random
from fsl_weighted_outer_loss.gradients import GradientNorm, GradientSimilarity
from fsl_weighted_outer_loss.losses import Focal, LogLoss, SoftmaxLoss, WorstCase
from fsl_weighted_outer_loss.memory import Memory
from fsl_weighted_outer_loss.uncertainty import Uncertainty

WEIGHTINGS = (
    GradientSimilarity,
    SoftmaxLoss,
    Focal,
    WorstCase,
    LogLoss,
    Uncertainty,
    GradientNorm,
    ConflictFree,
    Memory,
    Random,
)

__all__ = [
    "WEIGHTINGS",
    "ConflictFree",
    "Focal",
    "GradientNorm",
    "GradientSimilarity",
    "LogLoss",
    "Memory",
    "Random",
    "SoftmaxLoss",
    "Uncertainty",
    "WorstCase",
    "fsl_register_weightings",
]


@fsl.hookimpl
def fsl_register_weightings(register):
    for weighting in WEIGHTINGS:
        register(weighting)

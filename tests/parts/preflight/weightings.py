"""A plugin of weightings, each wrong in one way."""

from __future__ import annotations

import torch
from torch import nn

import fsl_core as fsl


class ScalarWeight(fsl.TaskWeighting):
    name = "scalar-weight"

    def weigh(self, outcomes):
        return outcomes.losses.softmax(0).sum()


class InfiniteWeight(ScalarWeight):
    name = "infinite-weight"

    def weigh(self, outcomes):
        return outcomes.losses / 0


class RaisingWeighting(ScalarWeight):
    name = "raising-weighting"

    def weigh(self, outcomes):
        return outcomes.losses + outcomes.gradients


class VectorObjective(ScalarWeight):
    name = "vector-objective"

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def weigh(self, outcomes):
        return (self.temperature * outcomes.losses).softmax(0)

    def objective(self, weights, outcomes):
        return weights * outcomes.losses


class NoWeighting(nn.Module):
    name = "no-weighting"

    def weigh(self, outcomes):
        return outcomes.losses.softmax(0)


@fsl.hookimpl
def fsl_register_weightings(register):
    for part in list(globals().values()):
        if isinstance(part, type) and "name" in vars(part):
            register(part)

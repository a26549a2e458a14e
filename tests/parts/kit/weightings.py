"""Weightings, sound ones first; each of the others is wrong in one way, and FAULTS says which
property shows it."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.builtin.uniform import Uniform


class SoftmaxOfLoss(fsl.TaskWeighting):
    name = "softmax-of-loss"

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def weigh(self, outcomes):
        return (outcomes.losses.log1p() * self.log_scale.exp()).softmax(0)


class Agreement(fsl.TaskWeighting):
    """Weights by the cosine to the mean gradient, safe at zero."""

    name = "agreement"
    needs = frozenset({"gradients"})

    def weigh(self, outcomes):
        directions = F.normalize(outcomes.gradients, dim=1)
        return (directions @ directions.mean(0)).softmax(0)


class Drawn(fsl.TaskWeighting):
    name = "drawn"
    needs = frozenset()

    def weigh(self, outcomes):
        return torch.rand_like(outcomes.losses).softmax(0)


class SumsToMore(fsl.TaskWeighting):
    name = "faulty"

    def weigh(self, outcomes):
        return outcomes.losses.softmax(0) * 1.01


class ClaimsTasks(SumsToMore):
    total = "tasks"

    def weigh(self, outcomes):
        return outcomes.losses.softmax(0)


class AllZero(SumsToMore):
    total = "any"

    def weigh(self, outcomes):
        return torch.zeros_like(outcomes.losses)


class ObjectivePerTask(SoftmaxOfLoss):
    def objective(self, weights, outcomes):
        return weights * outcomes.losses


class ByPlace(SumsToMore):
    def weigh(self, outcomes):
        return torch.arange(1.0, 1 + len(outcomes.losses), dtype=outcomes.losses.dtype).softmax(0)


class FirstTaskLessLoss(SumsToMore):
    def weigh(self, outcomes):
        scores = (
            outcomes.losses
            - torch.nn.functional.one_hot(torch.tensor(0), len(outcomes.losses)) * outcomes.losses
        )
        return scores.softmax(0)


GENERATOR = np.random.default_rng(0)


class DrawnFromNumpy(SumsToMore):
    def weigh(self, outcomes):
        return torch.from_numpy(GENERATOR.random(len(outcomes.losses))).softmax(0)


class Negative(SumsToMore):
    def weigh(self, outcomes):
        return 1 / len(outcomes.losses) + outcomes.losses - outcomes.losses.mean()


class QuotientOfExponentials(SumsToMore):
    def weigh(self, outcomes):
        return outcomes.losses.exp() / outcomes.losses.exp().sum()


class DividesByTheSum(SumsToMore):
    def weigh(self, outcomes):
        return outcomes.losses / outcomes.losses.sum()


class DividesByTheSpread(SumsToMore):
    def weigh(self, outcomes):
        return (
            (outcomes.losses - outcomes.losses.mean()) / outcomes.losses.std(correction=0)
        ).softmax(0)


class ScalarWeight(SumsToMore):
    def weigh(self, outcomes):
        return outcomes.losses.softmax(0).sum()


class UndeclaredLosses(SumsToMore):
    needs = frozenset()

    def weigh(self, outcomes):
        return outcomes.losses.softmax(0)


class UndeclaredLossesBesideGradients(SumsToMore):
    needs = frozenset({"gradients"})

    def weigh(self, outcomes):
        return (outcomes.losses + outcomes.gradients.sum(1)).softmax(0)


class ChangesLosses(SumsToMore):
    def weigh(self, outcomes):
        return outcomes.losses.sub_(outcomes.losses.max()).softmax(0)


class DetachedParameter(SoftmaxOfLoss):
    def weigh(self, outcomes):
        return super().weigh(outcomes).detach()


class NoSuperInAWeighting(SoftmaxOfLoss):
    def __init__(self):
        self.log_scale = nn.Parameter(torch.zeros(()))


class AverageOutsideStateDict(SumsToMore):
    average = 0.0

    def weigh(self, outcomes):
        self.average = 0.9 * self.average + 0.1 * outcomes.losses.mean()
        return (outcomes.losses * self.average).softmax(0)


class MisspelledNeed(SumsToMore):
    needs = frozenset({"loss"})


class AlwaysDouble(SumsToMore):
    def weigh(self, outcomes):
        return outcomes.losses.double().softmax(0)


class CountsOnTheCpu(SumsToMore):
    def weigh(self, outcomes):
        return (outcomes.losses * torch.ones(len(outcomes.losses))).softmax(0)


class CountsOutsideTensors(Uniform):
    def get_extra_state(self):
        return 3

    def set_extra_state(self, state):
        pass


FAULTS = [
    (SumsToMore, "one_finite_weight_a_task"),
    (ClaimsTasks, "one_finite_weight_a_task"),
    (AllZero, "one_finite_weight_a_task"),
    (ObjectivePerTask, "gradient_reaches_every_parameter"),
    (ByPlace, "equal_tasks_weigh_the_same"),
    (FirstTaskLessLoss, "order_of_tasks"),
    (Drawn, "randomness_is_claimed"),
    (DrawnFromNumpy, "randomness_is_torchs"),
    (Negative, "one_finite_weight_a_task"),
    (QuotientOfExponentials, "extreme_outcomes"),
    (DividesByTheSum, "extreme_outcomes"),
    (DividesByTheSpread, "one_finite_weight_a_task"),
    (ScalarWeight, "one_finite_weight_a_task"),
    (UndeclaredLosses, "needs_are_all_it_reads"),
    (UndeclaredLossesBesideGradients, "needs_are_all_it_reads"),
    (ChangesLosses, "outcomes_are_only_read"),
    (DetachedParameter, "gradient_reaches_every_parameter"),
    (AverageOutsideStateDict, "checkpoint_is_the_whole_state"),
    (MisspelledNeed, "claims"),
    (NoSuperInAWeighting, "claims"),
    (AlwaysDouble, "single_precision"),
    (CountsOnTheCpu, "device"),
    (CountsOutsideTensors, "checkpoint_is_the_whole_state"),
]

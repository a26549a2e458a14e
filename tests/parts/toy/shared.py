"""Parts that are hard to share among processes: they remember, compare, draw or fail."""

import os
import signal
import sys

import torch

import fsl_core as fsl


class Remembers(fsl.TaskWeighting):
    """By losses, by what it has learned, and by what it remembers of the step before."""

    name = "remembers"

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("before", torch.zeros(()))

    def weigh(self, outcomes):
        weights = torch.softmax(self.scale * (outcomes.losses - self.before), 0)
        self.before.copy_(outcomes.losses.mean())
        return weights


class Agrees(fsl.TaskWeighting):
    """By the cosine of a task's gradient and the mean of all."""

    name = "agrees"
    needs = frozenset({"gradients"})

    def weigh(self, outcomes):
        mean = outcomes.gradients.mean(0)
        return torch.softmax(torch.cosine_similarity(outcomes.gradients, mean[None]), 0)


class Draws(fsl.TaskWeighting):
    """By chance and by the number of the task."""

    name = "draws"
    needs = frozenset()

    def weigh(self, outcomes):
        return torch.softmax(torch.randn(len(outcomes.losses)) + 0.1 * (outcomes.ids % 3), 0)


class Noisy(fsl.Adapter):
    """A linear head on features with dropout."""

    name = "noisy"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__()
        self.head = torch.nn.Linear(backbone.feature_dim, task.output_dim)
        self.unused = torch.nn.Parameter(torch.ones(3))  # no gradient reaches it

    def adapt(self, backbone, support):
        return lambda x: self.head(torch.dropout(backbone(x), 0.3, self.training))


class Carries(Noisy):
    """What a task leaves is found by the next one."""

    name = "carries"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__(task, backbone)
        self.register_buffer("seen", torch.zeros(()))

    def objective(self, backbone, episode, loss):
        prediction = self.head(backbone(episode.query.x)) + self.seen
        self.seen.copy_(0.1 * prediction.detach().mean())
        return loss(prediction, episode.query.y), prediction


class Fails(Noisy):
    """Cannot take the last task of the second step: the last rank alone meets it."""

    name = "fails"

    def objective(self, backbone, episode, loss):
        if int(episode.id) == 7 and self.training:
            raise fsl.DataError("task 7: no items. A task with items")
        return super().objective(backbone, episode, loss)


class Dies(Noisy):
    """Ends the process of one rank in the tenth step, if DYING_RANK names it."""

    name = "dies"

    def objective(self, backbone, episode, loss):
        rank = os.environ.get("RANK", "0")
        if int(episode.id) == 39 and self.training and os.environ.get("DYING_RANK") == rank:
            sys.__stderr__.write("no more tasks, please\n")
            sys.__stderr__.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().objective(backbone, episode, loss)


@fsl.hookimpl
def fsl_register_adapters(register):
    for adapter in (Noisy, Carries, Fails, Dies):
        register(adapter)


@fsl.hookimpl
def fsl_register_weightings(register):
    for weighting in (Remembers, Agrees, Draws):
        register(weighting)

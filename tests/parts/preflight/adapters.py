"""A plugin of adapters: a sound one, its faulty twins, and gradient steps of every kind."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

import fsl_core as fsl


class Centroid(fsl.Adapter):
    """The sound adapter that others spoil."""

    name = "centroid"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__()
        self.n_way, self.feature_dim = task.n_way, backbone.feature_dim
        self.scale = nn.Parameter(torch.ones(()))

    def adapt(self, backbone, support):
        members = normalize(fsl.one_hot(support.y, self.n_way).to(support.x), p=1, dim=0)
        means = members.T @ backbone(support.x)
        return lambda x: -self.scale * (backbone(x)[:, None] - means).square().sum(-1)


class NoSuperAdapter(fsl.Adapter):
    name = "no-super-adapter"

    def __init__(self, task: fsl.TaskShape):
        self.scale = nn.Parameter(torch.ones(()))


class PlainModule(nn.Module):
    name = "plain-module"

    def adapt(self, backbone, support):
        return backbone


class WrongShape(Centroid):
    name = "wrong-shape"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return lambda x: predict(x).T


class Transposed(Centroid):
    name = "transposed"

    def objective(self, backbone, episode, loss):
        value, prediction = super().objective(backbone, episode, loss)
        return value, prediction[..., None]


class NotCallable(Centroid):
    name = "not-callable"

    def adapt(self, backbone, support):
        return super().adapt(backbone, support)(support.x)


class ChangesItems(Centroid):
    name = "changes-items"

    def adapt(self, backbone, support):
        support.x.sub_(support.x.mean())
        return super().adapt(backbone, support)


class ChangesWeights(Centroid):
    name = "changes-weights"

    def adapt(self, backbone, support):
        with torch.no_grad():
            self.scale.mul_(0.99)
        return super().adapt(backbone, support)


class Remembers(Centroid):
    name = "remembers"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.memory = torch.zeros(self.feature_dim)

    def adapt(self, backbone, support):
        self.memory = 0.5 * self.memory + backbone(support.x).detach().mean(0)
        memory = self.memory
        return super().adapt(lambda x: backbone(x) * memory, support)


class FirstTaskForEver(Centroid):
    name = "first-task-for-ever"
    means = None

    def adapt(self, backbone, support):
        if self.means is None:
            self.means = torch.stack([z.mean(0) for z in backbone(support.x).split(2)]).detach()
        return lambda x: self.scale * backbone(x) @ self.means.T


class LossPerItem(Centroid):
    name = "loss-per-item"

    def objective(self, backbone, episode, loss):
        prediction = self.adapt(backbone, episode.support)(episode.query.x)
        return prediction.square().sum(1), prediction


class LossAlone(Centroid):
    name = "loss-alone"

    def objective(self, backbone, episode, loss):
        return super().objective(backbone, episode, loss)[0]


class Nan(Centroid):
    name = "nan"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return lambda x: predict(x).log()


class Detached(Centroid):
    name = "detached"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return lambda x: predict(x).detach()


class GradientNotFinite(Centroid):
    name = "gradient-not-finite"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return lambda x: predict(x) + (self.scale - 1).square().sqrt()


class DisablesGradients(Centroid):
    name = "disables-gradients"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)

        def last(x):
            prediction = predict(x)
            torch.set_grad_enabled(False)
            return prediction

        return last


class RaisesInAdapt(Centroid):
    name = "raises-in-adapt"

    def adapt(self, backbone, support):
        return super().adapt(backbone, support._replace(x=support.x[[99]]))


class OtherInEvaluation(Centroid):
    name = "other-in-evaluation"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return predict if self.training else lambda x: predict(x)[:, :2]


class ThreeWaysInEvaluation(Centroid):
    name = "three-ways-in-evaluation"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return lambda x: predict(x)[:, :3]


class TrainsInEvaluation(Centroid):
    name = "trains-in-evaluation"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.register_buffer("seen", torch.zeros(()))

    def adapt(self, backbone, support):
        if not self.training:
            self.seen.add_(1)
        return super().adapt(backbone, support)


class OtherTrajectory(Centroid):
    name = "other-trajectory"

    def trajectory(self, backbone, support):
        predict = self.adapt(backbone, support)
        return [lambda x: predict(x).flip(1)]


class EmptyTrajectory(Centroid):
    name = "empty-trajectory"

    def trajectory(self, backbone, support):
        return []


class FailsAfterItsWarmUp(Centroid):
    name, progress = "fails-after-its-warm-up", 0.0

    def on_progress(self, progress):
        self.progress = progress

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)
        return predict if self.progress < 0.5 or not self.training else lambda x: predict(x)[:, :1]


class RemembersInEvaluation(Remembers):
    name = "remembers-in-evaluation"

    def adapt(self, backbone, support):
        if self.training:
            return Centroid.adapt(self, backbone, support)
        return super().adapt(backbone, support)


class FunctionalSteps(Centroid):
    """Gradient steps on all weights, whose buffers are copies."""

    name = "functional-steps"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.head, self.loss = nn.Linear(self.feature_dim, task.output_dim), task.loss

    def adapt(self, backbone, support):
        fast = dict(backbone.named_parameters())

        def predict(x, fast=fast):
            buffers = {name: b.clone() for name, b in backbone.named_buffers()}
            return self.head(functional_call(backbone, fast | buffers, (x,)))

        with torch.enable_grad():
            loss = self.loss(predict(support.x), support.y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {n: w - 0.1 * s for (n, w), s in zip(fast.items(), slopes, strict=True)}
        return lambda x: predict(x, fast)


class FunctionalGrad(FunctionalSteps):
    """The same by torch.func.grad, which refuses a layer that moves its own buffers."""

    name = "functional-grad"

    def adapt(self, backbone, support):
        fast = dict(backbone.named_parameters())

        def predict(fast, x):
            return self.head(functional_call(backbone, fast, (x,)))

        slopes = torch.func.grad(lambda fast: self.loss(predict(fast, support.x), support.y))(fast)
        fast = {n: w - 0.1 * slopes[n] for n, w in fast.items()}
        return lambda x: predict(fast, x)


class FunctionalNormHead(FunctionalSteps):
    """A norm of the adapter's own, called with copies of its buffers."""

    name = "functional-norm-head"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.norm = nn.BatchNorm1d(self.feature_dim)

    def adapt(self, backbone, support):
        copies = {name: b.clone() for name, b in self.norm.named_buffers()}
        weights = dict(self.norm.named_parameters())

        def features(x):
            return functional_call(self.norm, weights | copies, (backbone(x),))

        return Centroid.adapt(self, features, support)


class AutogradSteps(Centroid):
    """As plain torch suggests, also in evaluation."""

    name = "autograd-steps"

    def adapt(self, backbone, support):
        weight = self.scale
        for _ in range(2):
            z = backbone(support.x)
            (slope,) = torch.autograd.grad(
                (weight * z).square().mean(), [weight], create_graph=True
            )
            weight = weight - 0.1 * slope
        predict = super().adapt(backbone, support)
        return lambda x: weight * predict(x)


class AutogradInThePredictor(Centroid):
    name = "autograd-in-the-predictor"

    def adapt(self, backbone, support):
        predict = super().adapt(backbone, support)

        def corrected(x):
            entropy = predict(x).softmax(-1).square().sum()
            (slope,) = torch.autograd.grad(entropy, [self.scale], create_graph=True)
            return predict(x) * (1 - 0.1 * slope)

        return corrected


class Buffered(Centroid):
    """A task leaves a trace for the next one, in a buffer, where a checkpoint holds it."""

    name, vectorizable, threadable = "buffered", False, False

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.register_buffer("memory", torch.ones(self.feature_dim))

    def objective(self, backbone, episode, loss):
        memory = self.memory.clone()
        predict = self.adapt(lambda x: backbone(x) * memory, episode.support)
        prediction = predict(episode.query.x)
        self.memory.lerp_(backbone(episode.support.x).detach().mean(0), 0.1)
        return loss(prediction, episode.query.y), prediction


class MomentumWeights(Centroid):
    """A slow copy of a weight, frozen, that follows it in training."""

    name, vectorizable, threadable = "momentum-weights", False, False

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.slow = nn.Parameter(torch.full((), 0.5), requires_grad=False)

    def adapt(self, backbone, support):
        if self.training:
            self.slow.data.lerp_(self.scale.detach(), 0.1)
        return super().adapt(backbone, support)


class CachesAConstant(Centroid):
    name = "caches-a-constant"
    weights: Tensor | None = None

    def adapt(self, backbone, support):
        if self.weights is None:
            self.weights = torch.arange(1.0, 1 + self.feature_dim)
        return super().adapt(lambda x: backbone(x) * self.weights, support)


class CannotBeCopied(Centroid):
    name = "cannot-be-copied"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.lock = threading.Lock()


class ForTheseQueries(Centroid):
    """Made for as many queries as episodes have."""

    name, transductive = "for-these-queries", True

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module):
        super().__init__(task, backbone)
        self.mixing = nn.Parameter(torch.eye(task.n_way * task.n_query))

    def adapt(self, backbone, support, query_x):
        predict = super().adapt(backbone, support)
        return lambda x: self.mixing @ predict(x)


@fsl.hookimpl
def fsl_register_adapters(register):
    for part in list(globals().values()):
        if isinstance(part, type) and "name" in vars(part):
            register(part)

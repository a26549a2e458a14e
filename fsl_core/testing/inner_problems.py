"""Adapters whose inner problems differ in what an estimate of the meta-gradient may assume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing.tiny import GradientSteps

Weights = dict[str, Tensor]

HEAD, CENTRE = "head.weight", "centre.head.weight"


class RidgeSteps(fsl.Adapter):
    """Gradient steps of 0.2 on a ridge regression of the head: strongly convex, and solved at once.

        l(W) = mean (f(x) W' - y)^2 + proximal / 2 * ||W - head||^2,    W_0 = head

    For regression. The start is the head (output_dim, feature_dim), without a bias; the backbone f
    and the centre of the penalty are in `outer`.
    """

    name = "ridge-steps"
    inner_lr = 0.2

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_steps: int = 2,
        proximal: float = 1.0,
    ):
        super().__init__()
        self.task, self.inner_steps, self.proximal = task, inner_steps, proximal
        feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.head = nn.Linear(feature_dim, task.output_dim, bias=False)

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        net = fsl.Functional(backbone, self.head)
        body = {name: w for name, w in net.weights.items() if name != HEAD}

        def loss(phi: Weights, outer: Weights) -> Tensor:
            fit = self.task.loss(net(outer | phi, support.x), support.y)
            if CENTRE not in outer:
                return fit
            return fit + self.proximal / 2 * (phi[HEAD] - outer[CENTRE]).square().sum()

        return fsl.InnerProblem(
            start={HEAD: net.weights[HEAD]},
            outer=body | {CENTRE: net.weights[HEAD]},
            steps=self.inner_steps,
            loss=loss,
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, self.inner_lr),
            predict=lambda phi, outer, x: net(outer | phi, x),
            proximal=self.proximal,
            curvature=self.proximal,
        )

    def minimum(self, backbone: nn.Module, support: fsl.LabelledSet) -> Tensor:
        """The weights where l is least, by a dense solve; a function of the meta-parameters."""
        features, scale = backbone(support.x), 2 / support.y.numel()
        identity = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
        normal = scale * features.T @ features + self.proximal * identity
        right = scale * features.T @ support.y + self.proximal * self.head.weight.T
        return torch.linalg.solve(normal, right).T

    def at_the_minimum(self, backbone: nn.Module, episode: fsl.Episode) -> Tensor:
        """The query loss there."""
        weight = self.minimum(backbone, episode.support)
        return self.task.loss(F.linear(backbone(episode.query.x), weight), episode.query.y)


class HeadAlone(GradientSteps):
    """Steps move the head; the backbone is in `outer`."""

    name = "head-alone"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__(task, backbone, inner_steps)
        self.names = fsl.Functional(backbone, self.head).adapted("head")


class LayersByStep(GradientSteps):
    """The first step moves the head, later ones all weights."""

    name = "layers-by-step"

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        head = [name for name in self.names if name.startswith("head.")]
        return replace(super().inner_problem(backbone, support), schedule=(head, self.names))


class LearnedRate(GradientSteps):
    """The length of a step is trained by the outer loop."""

    name = "learned-rate"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__(task, backbone, inner_steps)
        self.rate = nn.Parameter(torch.tensor(0.1))

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        problem = super().inner_problem(backbone, support)
        return replace(
            problem,
            outer=problem.outer | {"rate": self.rate},
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, outer["rate"]),
        )


class Momentum(GradientSteps):
    """A step goes on in the direction of those before it."""

    name = "momentum"

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        velocity: Weights = {}

        def step(phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
            if k == 0:
                velocity.clear()
            for name, slope in gradient.items():
                velocity[name] = slope + 0.9 * velocity[name] if name in velocity else slope
            return fsl.descend(phi, velocity, 0.1)

        return replace(super().inner_problem(backbone, support), step=step)


class ScalePerStep(GradientSteps):
    """Each step sees the network scaled by a learned number of its own."""

    name = "scale-per-step"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__(task, backbone, inner_steps)
        self.scales = nn.Parameter(torch.linspace(1.0, 1.5, max(inner_steps, 1)))

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        problem = super().inner_problem(backbone, support)

        def at(outer: Weights, k: int) -> Weights:
            return outer | {"scale": outer["scales"][min(k, len(self.scales) - 1)]}

        def predict(phi: Weights, outer: Weights, x: Tensor) -> Tensor:
            return outer["scale"] * problem.predict(phi, outer, x)

        return replace(
            problem,
            outer=at(problem.outer | {"scales": self.scales}, self.inner_steps - 1),
            loss=lambda phi, outer: self.loss(predict(phi, outer, support.x), support.y),
            predict=predict,
            at=at,
        )


class ByAutograd(GradientSteps):
    """Its gradients are those of torch.autograd, one task at a time."""

    name = "by-autograd"
    vectorizable = False

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        return replace(super().inner_problem(backbone, support), by_autograd=True)


class Penalised(GradientSteps):
    """It follows another objective than the query loss."""

    name = "penalised"

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        value, prediction = super().objective(backbone, episode, loss)
        return value + self.head.weight.square().sum(), prediction


class NoSteps(GradientSteps):
    """An inner problem without a step."""

    name = "no-steps"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__(task, backbone, 0)


class NoInnerProblem(fsl.Adapter):
    """One gradient step of a linear head, which nobody else can drive."""

    name = "no-inner-problem"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__()
        self._steps = HeadAlone(task, backbone, 1)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        return self._steps.adapt(backbone, support)


SHAPES: dict[str, Callable[..., fsl.Adapter]] = {
    maker.name: maker
    for maker in (
        NoInnerProblem,
        NoSteps,
        HeadAlone,
        LayersByStep,
        LearnedRate,
        Momentum,
        ScalePerStep,
        ByAutograd,
        Penalised,
    )
}

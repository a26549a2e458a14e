"""Adapters, sound ones first; each of the others is wrong in one way, and FAULTS says which
property of the kit shows it."""

import threading

import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid


class FunctionalMaml(fsl.Adapter):
    """The reference: two SGD steps on all weights by torch.func."""

    name = "functional-maml"
    inner_lr, inner_steps = 0.3, 2

    def __init__(self, task, backbone):
        super().__init__()
        self.task, self.head = task, nn.Linear(backbone.feature_dim, task.output_dim)
        self.frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]

    def adapt(self, backbone, support):
        return self.trajectory(backbone, support)[-1]

    def trajectory(self, backbone, support):
        fast = self.initial(backbone)
        predictors = [self.predictor(backbone, fast)]
        for _ in range(self.inner_steps):
            slope = self.slope(backbone, fast, support)
            fast = {name: weight - self.inner_lr * slope[name] for name, weight in fast.items()}
            predictors.append(self.predictor(backbone, fast))
        return predictors

    def initial(self, backbone):
        own = {f"head.{name}": p for name, p in self.head.named_parameters()}
        body = {n: p for n, p in backbone.named_parameters() if n not in self.frozen}
        return own | {f"body.{name}": p for name, p in body.items()}

    def slope(self, backbone, fast, support):
        return grad(
            lambda weights: self.task.loss(self.predictor(backbone, weights)(support.x), support.y)
        )(fast)

    def predictor(self, backbone, fast):
        body = {
            name.removeprefix("body."): w for name, w in fast.items() if name.startswith("body.")
        }
        return lambda x: F.linear(
            functional_call(backbone, body, (x,)), fast["head.weight"], fast["head.bias"]
        )


class FirstOrderMaml(FunctionalMaml):
    order = 1

    def slope(self, backbone, fast, support):
        return {name: g.detach() for name, g in super().slope(backbone, fast, support).items()}


class WeighsByQueries(NearestCentroid):
    """Scales the features by what the queries look like, and says so."""

    transductive = True

    def adapt(self, backbone, support, query_x):
        scale = 1 + backbone(query_x).square().mean(0)
        return super().adapt(lambda x: backbone(x) * scale, support)


class AutogradSteps(NearestCentroid):
    """Gradient steps as plain torch takes them, in evaluation too."""

    vectorizable = False

    def __init__(self, task):
        super().__init__(task)
        self.scale = nn.Parameter(torch.ones(5))

    def adapt(self, backbone, support):
        scale = self.scale
        for _ in range(2):
            predict = super().adapt(lambda x, scale=scale: backbone(x) * scale, support)
            loss = F.cross_entropy(predict(support.x), support.y)
            (slope,) = torch.autograd.grad(loss, [scale], create_graph=True)
            scale = scale - 0.1 * slope
        return super().adapt(lambda x: backbone(x) * scale, support)


class Dropping(NearestCentroid):
    """Random in training, by a function and by a layer."""

    def __init__(self, task):
        super().__init__(task)
        self.layer = nn.Dropout(0.3)

    def adapt(self, backbone, support):
        def features(x):
            z = F.dropout1d(backbone(x), 0.2, self.training)
            return self.layer(z) + 0.01 * torch.randn_like(z) * self.training

        return super().adapt(features, support)


class ChangesFrozenWeights(FunctionalMaml):
    """An option of it says so."""

    def __init__(self, task, backbone):
        super().__init__(task, backbone)
        self.frozen = []


class DetachedFeatures(FunctionalMaml):
    def predictor(self, backbone, fast):
        return lambda x: F.linear(backbone(x).detach(), fast["head.weight"], fast["head.bias"])


class NoGradInAdapt(NearestCentroid):
    def adapt(self, backbone, support):
        with torch.no_grad():
            return super().adapt(backbone, support)


class NothingTrained(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x).detach()


class FirstOrderClaimedAsSecond(FirstOrderMaml):
    order = 2


class ChangesBackboneWeights(NearestCentroid):
    vectorizable = False

    def adapt(self, backbone, support):
        with torch.no_grad():
            backbone.linear.weight.mul_(0.999)
        return super().adapt(backbone, support)


class LeavesGradients(FunctionalMaml):
    vectorizable = False

    def adapt(self, backbone, support):
        if torch.is_grad_enabled():
            self.task.loss(self.head(backbone(support.x)), support.y).backward()
        return super().adapt(backbone, support)


class MovesRunningStatistics(NearestCentroid):
    vectorizable = False

    def __init__(self, task):
        super().__init__(task)
        self.register_buffer("centre", torch.zeros(5))

    def adapt(self, backbone, support):
        if self.training:
            self.centre.lerp_(backbone(support.x).detach().mean(0), 0.1)
        centre = self.centre.clone()
        return super().adapt(lambda x: backbone(x) - centre, support)


class SwitchesToEvaluation(NearestCentroid):
    def adapt(self, backbone, support):
        backbone.eval()
        return super().adapt(backbone, support)


class SeesOtherQueries(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x) * (1 + x.mean())


class SeesDeclaredQueries(WeighsByQueries):
    transductive = False


class ClaimsToBeTransductive(NearestCentroid):
    transductive = True


class IgnoresTheSupport(FunctionalMaml):
    inner_steps = 0


class IgnoresLabels(NearestCentroid):
    unequal_shots = False

    def adapt(self, backbone, support):
        return super().adapt(
            backbone,
            fsl.LabelledSet(
                support.x, torch.arange(self.n_way).repeat_interleave(len(support.y) // self.n_way)
            ),
        )


class MixesUpLabels(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x) * torch.arange(1.0, 1 + self.n_way)


class WeighsRowsByPlace(NearestCentroid):
    def adapt(self, backbone, support):
        recency = torch.linspace(0.9, 1.1, len(support.x))[:, None]
        shares = F.normalize(fsl.one_hot(support.y, self.n_way) * recency, p=1, dim=0)
        means = shares.T @ backbone(support.x)
        return lambda x: backbone(x) @ means.T


class UnusedParameter(NearestCentroid):
    def __init__(self, task):
        super().__init__(task)
        self.scale = nn.Parameter(torch.ones(()))


class StateOutsideStateDict(NearestCentroid):
    def __init__(self, task):
        super().__init__(task)
        self.mixing = torch.randn(5, 5)

    def adapt(self, backbone, support):
        return super().adapt(lambda x: backbone(x) @ self.mixing, support)


class HiddenBetweenCalls(NearestCentroid):
    def adapt(self, backbone, support):
        self.current = super().adapt(backbone, support)
        return self.predict

    def predict(self, x):
        return self.current(x)


class RemembersTheLastTask(NearestCentroid):
    calls = 0

    def adapt(self, backbone, support):
        self.calls += 1
        predictor, factor = super().adapt(backbone, support), 1 + 0.1 * self.calls
        return lambda x: predictor(x) * factor


class NotFiniteAtOneShot(NearestCentroid):
    def adapt(self, backbone, support):
        z, predictor = backbone(support.x), super().adapt(backbone, support)
        spread = z.view(self.n_way, -1, z.shape[1]).var(1, correction=0).mean()
        return lambda x: predictor(x) / spread


class GradientNotFinite(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: (
            predictor(x) - predictor(x).sub(predictor(x)).square().sum(-1, keepdim=True).sqrt()
        )


class MasksByLabel(NearestCentroid):
    def adapt(self, backbone, support):
        z = backbone(support.x)
        means = torch.stack([z[support.y == c].mean(0) for c in range(self.n_way)])
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


class AffineNormUnderVmap(FunctionalMaml):
    def __init__(self, task, backbone):
        super().__init__(task, backbone)
        self.head = nn.Sequential(
            nn.LayerNorm(backbone.feature_dim), nn.Linear(backbone.feature_dim, task.output_dim)
        )

    def predictor(self, backbone, fast):
        body = {
            name.removeprefix("body."): w for name, w in fast.items() if name.startswith("body.")
        }
        head = {
            name.removeprefix("head."): w for name, w in fast.items() if name.startswith("head.")
        }
        return lambda x: functional_call(self.head, head, (functional_call(backbone, body, (x,)),))


class DropoutHidesNothing(AffineNormUnderVmap):
    def predictor(self, backbone, fast):
        predict = super().predictor(backbone, fast)
        return lambda x: predict(F.dropout(x, 0.1, self.training))


class DrawsByHand(NearestCentroid):
    """In a way that the kit cannot fix: it is not said to be equal, and not to be wrong."""

    def adapt(self, backbone, support):
        noise = torch.empty(5).uniform_() if self.training else 0
        return super().adapt(lambda x: backbone(x) + noise, support)


class NoSuper(NearestCentroid):
    def __init__(self, task):
        self.n_way = task.n_way


class NotAnAdapter(nn.Module):
    def __init__(self, task):
        super().__init__()


class KeepsAGraphInEvaluation(FunctionalMaml):
    vectorizable = False

    def trajectory(self, backbone, support):
        with torch.enable_grad():
            return super().trajectory(backbone, support)

    def slope(self, backbone, fast, support):
        loss = self.task.loss(self.predictor(backbone, fast)(support.x), support.y)
        return dict(
            zip(
                fast, torch.autograd.grad(loss, list(fast.values()), create_graph=True), strict=True
            )
        )


class TrajectoryInReverse(FunctionalMaml):
    def adapt(self, backbone, support):
        return super().trajectory(backbone, support)[-1]

    def trajectory(self, backbone, support):
        return super().trajectory(backbone, support)[::-1]


class WrongShape(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x).T


class SinglePrecision(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x).float()


class TakesRegression(FunctionalMaml):
    """Its test class claims classification alone."""


class NameOfAnInstance(NearestCentroid):
    name = property(lambda self: 3)


class AlwaysThreeWays(FunctionalMaml):
    def __init__(self, task, backbone):
        super().__init__(task, backbone)
        self.head = nn.Linear(backbone.feature_dim, 3)


class ThreeClasses(NearestCentroid):
    def __init__(self, task):
        super().__init__(task)
        self.n_way = 3


class ReshapesByShots(NearestCentroid):
    """It claims unequal_shots, and takes the first rows for the first class."""

    def __init__(self, task):
        super().__init__(task)
        self.n_shot = task.n_shot

    def adapt(self, backbone, support):
        count = self.n_way * self.n_shot
        means = backbone(support.x)[:count].unflatten(0, (self.n_way, -1)).mean(1)
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


class NoUnequalShots(ReshapesByShots):
    def adapt(self, backbone, support):
        if len(support.x) % self.n_way or len(support.y.unique(return_counts=True)[1].unique()) > 1:
            raise ValueError("as many of each class")
        return super().adapt(backbone, support)


class MasksWideTasks(NearestCentroid):
    """With more ways than a tiny task it reads labels, which vmap does not allow."""

    def adapt(self, backbone, support):
        if self.n_way == 3:
            return super().adapt(backbone, support)
        z = backbone(support.x)
        means = torch.stack([z[support.y == c].mean(0) for c in range(self.n_way)])
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


class SharedBetweenShapes(NearestCentroid):
    shots = 1  # of whichever was built last

    def __init__(self, task):
        super().__init__(task)
        type(self).shots = task.n_shot

    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x) * self.shots


class CannotBeCopied(NearestCentroid):
    def __init__(self, task):
        super().__init__(task)
        self.lock = threading.Lock()


class AsksTheCompiler(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x) * (1.01 if torch.compiler.is_compiling() else 1)


class ExtraState(NearestCentroid):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


class DoublePrecision(NearestCentroid):
    def adapt(self, backbone, support):
        predictor, scale = (
            super().adapt(backbone, support),
            torch.ones(self.n_way, dtype=torch.float64),
        )
        return lambda x: predictor(x) * scale


class EpsilonOfDoubles(NearestCentroid):
    def adapt(self, backbone, support):
        predictor = super().adapt(backbone, support)
        return lambda x: predictor(x) * (1 + 1e-12 * predictor(x)).log() * 1e12


class OnTheCpu(NearestCentroid):
    def adapt(self, backbone, support):
        predictor, scale = super().adapt(backbone, support), torch.ones(self.n_way)
        return lambda x: predictor(x) * scale


class ConditionsItsBackbone(NearestCentroid):
    """What it reads of the support set is to change the features of the queries."""

    keeps_backbone = True

    def adapt(self, backbone, support):
        gain = 1 + backbone(support.x).mean().tanh()
        hook = backbone.linear.register_forward_hook(lambda layer, inputs, out: gain * out)
        try:
            predictor = super().adapt(backbone, support)
        finally:
            hook.remove()
        return predictor


FAULTS = [
    (DetachedFeatures, "gradient_reaches_every_parameter"),
    (NoGradInAdapt, "gradient_is_that_of_finite_differences"),
    (NothingTrained, "gradient_reaches_every_parameter"),
    (FirstOrderClaimedAsSecond, "gradient_is_that_of_finite_differences"),
    (ChangesBackboneWeights, "adapt_changes_nothing"),
    (LeavesGradients, "adapt_changes_nothing"),
    (MovesRunningStatistics, "adapt_changes_nothing"),
    (SwitchesToEvaluation, "adapt_changes_nothing"),
    (SeesOtherQueries, "query_items_are_independent"),
    (SeesDeclaredQueries, "query_items_are_independent"),
    (ClaimsToBeTransductive, "query_items_are_independent"),
    (IgnoresTheSupport, "labels_are_used"),
    (IgnoresLabels, "support_order"),
    (MixesUpLabels, "label_equivariance"),
    (WeighsRowsByPlace, "support_order"),
    (UnusedParameter, "gradient_reaches_every_parameter"),
    (StateOutsideStateDict, "checkpoint_is_the_whole_state"),
    (HiddenBetweenCalls, "predictors_do_not_share_state"),
    (RemembersTheLastTask, "adapt_changes_nothing"),
    (NotFiniteAtOneShot, "other_numbers_of_items"),
    (GradientNotFinite, "gradient_reaches_every_parameter"),
    (MasksByLabel, "every_execution_equals_the_loop"),
    (AffineNormUnderVmap, "every_execution_equals_the_loop"),
    (DropoutHidesNothing, "every_execution_equals_the_loop"),
    (ChangesFrozenWeights, "frozen_weights_stay"),
    (ConditionsItsBackbone, "backbone_is_kept"),
    (NoSuper, "claims"),
    (NotAnAdapter, "claims"),
    (KeepsAGraphInEvaluation, "evaluation_keeps_no_graph"),
    (TrajectoryInReverse, "trajectory_ends_with_adapt"),
    (WrongShape, "predictions_have_their_shape"),
    (SinglePrecision, "predictions_have_their_shape"),
    (TakesRegression, "other_kinds_of_tasks_are_refused"),
    (NameOfAnInstance, "claims"),
    (AlwaysThreeWays, "other_ways_and_shots"),
    (ThreeClasses, "other_ways_and_shots"),
    (SharedBetweenShapes, "other_ways_and_shots"),
    (ReshapesByShots, "unequal_shots"),
    (NoUnequalShots, "unequal_shots"),
    (MasksWideTasks, "shapes_of_a_batch"),
    (CannotBeCopied, "every_execution_equals_the_loop"),
    (AsksTheCompiler, "compiled_equals_the_loop"),
    (ExtraState, "checkpoint_is_the_whole_state"),
    (DoublePrecision, "single_precision"),
    (EpsilonOfDoubles, "single_precision"),
    (OnTheCpu, "device"),
]

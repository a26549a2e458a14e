"""The kit has to catch each of these, by the property named; and to pass what is sound."""

import contextlib
import inspect
import itertools
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.builtin.uniform import Uniform
from fsl_core.testing import (
    AdapterContract,
    BackboneContract,
    EpisodesContract,
    WeightingContract,
    double_precision,
)


def properties(contract) -> list[str]:
    return [name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")]


def check(contract, property_name):
    """Run one property as pytest would, for every value of its parameters; the CUDA device is left to pytest."""
    contract = contract()
    method = getattr(contract, f"test_{property_name}")
    values = {
        "case": lambda: contract.cases(),  # noqa: PLW0108 - contracts without cases
        "kind": lambda: contract.kinds,
        "size": lambda: contract.sizes,
        "split": lambda: contract.splits,
        "device": lambda: ["meta"],
        "compiled": lambda: [True],
    }
    for arguments in itertools.product(
        *(values[name]() for name in inspect.signature(method).parameters)
    ):
        with contextlib.ExitStack() as stack:
            if not isinstance(contract, EpisodesContract):
                stack.enter_context(double_precision())
            stack.enter_context(contextlib.suppress(pytest.skip.Exception))
            method(*arguments)


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch):
    """The graph that torch.compile makes, forward and backward, without the minute of generating its code."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))


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


class MamlContract(AdapterContract):
    kinds = ("classification", "regression")

    def make(self, task, backbone):
        return FunctionalMaml(task, backbone)

    def permute_classes(self, adapter, permutation):
        for parameter in adapter.head.parameters():
            parameter[permutation] = parameter.clone()


class CentroidContract(AdapterContract):
    def make(self, task):
        return NearestCentroid(task)


class UniformContract(WeightingContract):
    def make(self):
        return Uniform()


class UniformSumContract(WeightingContract):
    def make(self):
        return Uniform(reduction="sum")


class SoftmaxOfLoss(fsl.TaskWeighting):
    name = "softmax-of-loss"

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def weigh(self, outcomes):
        return (outcomes.losses.log1p() * self.log_scale.exp()).softmax(0)


class SoftmaxContract(WeightingContract):
    def make(self):
        return SoftmaxOfLoss()


class Agreement(fsl.TaskWeighting):
    """Weights by the cosine to the mean gradient, safe at zero."""

    name = "agreement"
    needs = frozenset({"gradients"})

    def weigh(self, outcomes):
        directions = F.normalize(outcomes.gradients, dim=1)
        return (directions @ directions.mean(0)).softmax(0)


class AgreementContract(WeightingContract):
    def make(self):
        return Agreement()


class Drawn(fsl.TaskWeighting):
    name = "drawn"
    needs = frozenset()

    def weigh(self, outcomes):
        return torch.rand_like(outcomes.losses).softmax(0)


class DrawnContract(WeightingContract):
    random = True

    def make(self):
        return Drawn()


class FirstOrderMaml(FunctionalMaml):
    order = 1

    def slope(self, backbone, fast, support):
        return {name: g.detach() for name, g in super().slope(backbone, fast, support).items()}


class FirstOrderContract(MamlContract):
    def make(self, task, backbone):
        return FirstOrderMaml(task, backbone)


class WeighsByQueries(NearestCentroid):
    """Scales the features by what the queries look like, and says so."""

    transductive = True

    def adapt(self, backbone, support, query_x):
        scale = 1 + backbone(query_x).square().mean(0)
        return super().adapt(lambda x: backbone(x) * scale, support)


class TransductiveContract(AdapterContract):
    def make(self, task):
        return WeighsByQueries(task)


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


class AutogradContract(AdapterContract):
    def make(self, task):
        return AutogradSteps(task)


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


class DroppingContract(AdapterContract):
    def make(self, task):
        return Dropping(task)


class ChangesFrozenWeights(FunctionalMaml):
    """An option of it says so."""

    def __init__(self, task, backbone):
        super().__init__(task, backbone)
        self.frozen = []


class ChangesFrozenContract(MamlContract):
    adapts_frozen = True

    def make(self, task, backbone):
        return ChangesFrozenWeights(task, backbone)


class MlpContract(BackboneContract):
    input_shape = (4,)

    def make(self, task):
        return Mlp(task, hidden=(6,))


class ConvContract(BackboneContract):
    input_shape = (2, 5, 5)

    def make(self, task):
        return Conv4(task, channels=4, blocks=1)


class SupportNormContract(MlpContract):
    def make(self, task):
        return Mlp(task, hidden=(6,), norm="support")


class SinusoidContract(EpisodesContract):
    def make(self):
        return Sinusoid(tasks=5)


class Blobs(fsl.EpisodeSource):
    """Classes are points in the plane, items are points around them; eight numbers per class and item, drawn in float64."""

    name = "blobs"

    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (2,), 2)

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate(
            [self.episode(split, index, seed, task) for index in indices]
        )

    def episode(self, split, index, seed, task):
        per_class = task.n_shot + task.n_query
        u = fsl.to_uniform(fsl.draw_bits(seed, split, [index], task.n_way * (1 + per_class) * 2))[0]
        u = torch.from_numpy(u.astype(np.float32)).view(task.n_way, 1 + per_class, 2)
        x = u[:, :1] + 0.1 * u[:, 1:]
        return fsl.Episode(
            self.items(x[:, : task.n_shot]), self.items(x[:, task.n_shot :]), torch.tensor(index)
        )

    def items(self, x):
        return fsl.LabelledSet(x.flatten(0, 1), torch.arange(len(x)).repeat_interleave(x.shape[1]))


class BlobsContract(EpisodesContract):
    def make(self):
        return Blobs()


SOUND = [
    CentroidContract,
    MamlContract,
    FirstOrderContract,
    TransductiveContract,
    AutogradContract,
    DroppingContract,
    ChangesFrozenContract,
    UniformContract,
    UniformSumContract,
    SoftmaxContract,
    AgreementContract,
    DrawnContract,
    MlpContract,
    ConvContract,
    SupportNormContract,
    SinusoidContract,
    BlobsContract,
]


COMPILED = "compiled_equals_the_loop"  # takes seconds: of two sound ones it is checked, whose faulty twins are caught


@pytest.mark.parametrize(
    ("contract", "property_name"),
    [
        (c, name)
        for c in SOUND
        for name in properties(c)
        if name != COMPILED or c is CentroidContract
    ],
)
def test_sound_ones_pass(contract, property_name):
    check(contract, property_name)


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


ADAPTER_FAULTS = [
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
    (CannotBeCopied, "every_execution_equals_the_loop"),
    (AsksTheCompiler, "compiled_equals_the_loop"),
    (ExtraState, "checkpoint_is_the_whole_state"),
    (DoublePrecision, "single_precision"),
    (EpsilonOfDoubles, "single_precision"),
    (OnTheCpu, "device"),
]


@pytest.mark.parametrize(
    ("fault", "property_name"), ADAPTER_FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_faulty_adapters_are_caught(fault, property_name):
    base = MamlContract if issubclass(fault, FunctionalMaml) else CentroidContract

    class Contract(base):
        kinds = ("classification",)

        def make(self, task, backbone):
            return fault(task, backbone) if base is MamlContract else fault(task)

    with pytest.raises(AssertionError) as caught:
        check(Contract, property_name)
    assert (
        "assert " not in str(caught.value).splitlines()[0]
    )  # a message for people, not pytest's rewriting
    assert ". " in str(caught.value)  # what was found. What would fit


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


WEIGHTING_FAULTS = [
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


@pytest.mark.parametrize(
    ("fault", "property_name"), WEIGHTING_FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_faulty_weightings_are_caught(fault, property_name):
    class Contract(WeightingContract):
        def make(self):
            return fault()

    with pytest.raises(AssertionError) as caught:
        check(Contract, property_name)
    assert ". " in str(caught.value)


class Plain(nn.Module):
    """The sound backbone that each faulty one spoils: linear - tanh - linear - tanh, no normalisation."""

    def __init__(self, task):
        super().__init__()
        self.feature_dim = 5
        self.first, self.second = nn.Linear(task.input_shape[0], 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.second(self.first(x).tanh()).tanh()


class NoFeatureDim(Plain):
    def __init__(self, task):
        super().__init__(task)
        del self.feature_dim


class NoSuperInABackbone(Plain):
    def __init__(self, task):
        self.feature_dim = 5


class ATuple(Plain):
    def forward(self, x):
        return super().forward(x), x


class OtherInput(Plain):
    def forward(self, x):
        return super().forward(x[:, :3])


class DropoutBesideLayerNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Dropout(0.1), nn.Linear(6, 5))


class OtherFeatureDim(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.feature_dim = 6


class OneItemAlone(Plain):
    def forward(self, x):
        return super().forward(x) / (len(x) - 2)


class BatchStatistics(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class TorchBatchNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))


class TorchLayerNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))


class ClaimsANorm(Plain):
    norm = "transductive"


class CountsCalls(Plain):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class AllTheSame(Plain):
    def forward(self, x):
        return super().forward(x * 0)


class DetachedLayer(Plain):
    def forward(self, x):
        return self.second(self.first(x).tanh().detach()).tanh()


class WrongBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0].cos() * 1.1


class OnceDifferentiable(WrongBackward):
    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0].detach().cos()


class HalvedGradient(Plain):
    def forward(self, x):
        return WrongBackward.apply(super().forward(x))


class NoSecondDerivative(Plain):
    def forward(self, x):
        return OnceDifferentiable.apply(super().forward(x))


class UnusedLayer(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.third = nn.Linear(2, 2)


class ReadsAValue(Plain):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum() > 0 else 1)


class RandomConstants(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.mixing = torch.randn(5, 5)

    def forward(self, x):
        return super().forward(x) @ self.mixing


class DoubleConstants(Plain):
    def forward(self, x):
        return super().forward(x) * torch.ones(5, dtype=torch.float64)


class CpuConstants(Plain):
    def forward(self, x):
        return super().forward(x) * torch.ones(5)


class AsksTheCompilerToo(Plain):
    def forward(self, x):
        return super().forward(x) * (1.01 if torch.compiler.is_compiling() else 1)


BACKBONE_FAULTS = [
    (NoFeatureDim, "claims"),
    (NoSuperInABackbone, "claims"),
    (ATuple, "features_have_their_shape"),
    (OtherInput, "features_have_their_shape"),
    (OtherFeatureDim, "features_have_their_shape"),
    (OneItemAlone, "features_have_their_shape"),
    (BatchStatistics, "items_are_independent"),
    (TorchBatchNorm, "forward_changes_nothing"),
    (TorchLayerNorm, "every_execution_equals_the_loop"),
    (DropoutBesideLayerNorm, "every_execution_equals_the_loop"),
    (ClaimsANorm, "items_are_independent"),
    (CountsCalls, "forward_changes_nothing"),
    (AllTheSame, "features_depend_on_the_items"),
    (DetachedLayer, "gradient_reaches_every_parameter"),
    (HalvedGradient, "gradient_reaches_every_parameter"),
    (NoSecondDerivative, "second_derivatives"),
    (UnusedLayer, "gradient_reaches_every_parameter"),
    (ReadsAValue, "every_execution_equals_the_loop"),
    (RandomConstants, "checkpoint_is_the_whole_state"),
    (DoubleConstants, "single_precision"),
    (CpuConstants, "device"),
    (AsksTheCompilerToo, "compiled_equals_the_loop"),
]


class PlainContract(BackboneContract):
    input_shape = (4,)
    kind = Plain

    def make(self, task):
        return type(self).kind(task)


@pytest.mark.parametrize("property_name", properties(PlainContract))
def test_what_the_faulty_backbones_spoil_is_sound(property_name):
    check(PlainContract, property_name)


@pytest.mark.parametrize(
    ("fault", "property_name"), BACKBONE_FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_faulty_backbones_are_caught(fault, property_name):
    with pytest.raises(AssertionError) as caught:
        check(type("Contract", (PlainContract,), {"kind": fault}), property_name)
    assert ". " in str(caught.value)


class NotASource:
    task = Blobs().task


class ConstructorRaises(Blobs):
    def __init__(self):
        super().__init__()
        self.width = {}["width"]


class OneLogitForTwoWays(Blobs):
    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (2,), 1)


class LabelsAsFloats(Blobs):
    def items(self, x):
        return super().items(x)._replace(y=super().items(x).y.float())


class ClassesInterleaved(Blobs):
    def items(self, x):
        return fsl.LabelledSet(
            x.transpose(0, 1).flatten(0, 1), torch.arange(len(x)).repeat(x.shape[1])
        )


class QueriesOfTheSupport(Blobs):
    def episode(self, split, index, seed, task):
        episode = super().episode(split, index, seed, task)
        first = torch.arange(task.n_way) * task.n_query
        x = episode.query.x.index_copy(0, first, episode.support.x[:: task.n_shot])
        return episode._replace(query=episode.query._replace(x=x))


class GlobalNoise(Blobs):
    def items(self, x):
        return super().items(x + 0.01 * torch.rand_like(x))


class MovesTheGlobalState(Blobs):
    def items(self, x):
        torch.rand(1)
        return super().items(x)


class CountsItsCalls(Blobs):
    calls = 0

    def episode(self, split, index, seed, task):
        self.calls += 1
        return super().episode(split, index + self.calls, seed, task)


class AlwaysTheSame(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode(split, 0, seed, task)


class DeafToTheSeed(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode(split, index, 0, task)


class OneSplit(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode("train", index, seed, task)


class FixedShape(Blobs):
    def batch(self, split, indices, seed, task=None):
        return super().batch(split, indices, seed)


class NumbersBeyondItsTasks(Blobs):
    tasks = 3


class SupportAlone(Blobs):
    def fingerprint(self, episodes):
        return episodes.support.y.numpy().tobytes()


class DigestOfTheObject(Blobs):
    def inspect(self, split, digest=True):
        return fsl.SplitContents({"a": 5, "b": 5}, f"{next(COUNTER)}")


class EmptyClass(Blobs):
    def inspect(self, split, digest=True):
        return fsl.SplitContents({"a": 5, "b": 0}, "0")


COUNTER = itertools.count()
EPISODES_FAULTS = [
    (NotASource, "claims"),
    (ConstructorRaises, "claims"),
    (OneLogitForTwoWays, "claims"),
    (LabelsAsFloats, "a_batch_has_its_shape"),
    (ClassesInterleaved, "a_batch_has_its_shape"),
    (QueriesOfTheSupport, "items_of_an_episode_differ"),
    (GlobalNoise, "an_episode_is_a_function_of_split_index_and_seed"),
    (MovesTheGlobalState, "an_episode_is_a_function_of_split_index_and_seed"),
    (CountsItsCalls, "an_episode_is_a_function_of_split_index_and_seed"),
    (AlwaysTheSame, "episodes_differ"),
    (DeafToTheSeed, "episodes_differ"),
    (OneSplit, "episodes_differ"),
    (OneSplit, "splits_share_no_item"),
    (FixedShape, "other_ways_and_shots"),
    (NumbersBeyondItsTasks, "ids"),
    (SupportAlone, "fingerprint_tells_episodes_apart"),
    (DigestOfTheObject, "what_a_split_is_made_of"),
    (EmptyClass, "what_a_split_is_made_of"),
]


@pytest.mark.parametrize(
    ("fault", "property_name"), EPISODES_FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_faulty_episodes_are_caught(fault, property_name):
    class Contract(EpisodesContract):
        def make(self):
            return fault()

    with pytest.raises(AssertionError) as caught:
        check(Contract, property_name)
    assert ". " in str(caught.value)


ALL_FAULTS = {
    AdapterContract: ADAPTER_FAULTS,
    WeightingContract: WEIGHTING_FAULTS,
    BackboneContract: BACKBONE_FAULTS,
    EpisodesContract: EPISODES_FAULTS,
}


@pytest.mark.parametrize("contract", ALL_FAULTS, ids=lambda contract: contract.__name__)
def test_every_property_has_caught_a_fault(contract):
    found = {property_name for _, property_name in ALL_FAULTS[contract]}
    needs_cuda = {"device"} if contract is EpisodesContract else set()
    assert set(properties(contract)) - found - needs_cuda == set()


def test_make_has_to_be_written():
    with pytest.raises(
        NotImplementedError, match=r"AdapterContract\.make: not written\. A method make"
    ):
        AdapterContract().test_claims("classification")
    for contract in (WeightingContract, BackboneContract, EpisodesContract):
        with pytest.raises(
            NotImplementedError, match=rf"{contract.__name__}\.make: not written\. A method make"
        ):
            contract().test_claims()


def test_the_default_dtype_and_generator_are_restored():
    before = torch.get_rng_state()
    with contextlib.suppress(ZeroDivisionError), double_precision():
        assert torch.rand(3).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_what_draws_in_a_way_of_its_own_is_not_compared():
    class Contract(CentroidContract):
        def make(self, task):
            return DrawsByHand(task)

    with (
        double_precision(),
        pytest.raises(
            pytest.skip.Exception, match="not run: it draws random numbers other than by"
        ),
    ):
        Contract().test_every_execution_equals_the_loop(("classification", "none"))


def test_a_claim_to_adapt_frozen_weights_is_measured():
    class Contract(MamlContract):
        adapts_frozen = True

    with pytest.raises(AssertionError, match=r"adapts_frozen = True is claimed, and they stay\."):
        check(Contract, "frozen_weights_stay")


def test_without_gradient_is_measured():
    class Contract(CentroidContract):
        without_gradient = ("backbone.conv.*",)

    with pytest.raises(
        AssertionError,
        match=r"without_gradient: backbone\.conv\.bias, backbone\.conv\.weight gets one\. Drop it",
    ):
        check(Contract, "gradient_reaches_every_parameter")


def test_sorted_rows_may_be_relied_upon():
    class Contract(CentroidContract):
        any_row_order = False

        def make(self, task):
            return IgnoresLabels(task)

    for property_name in set(properties(Contract)) - {COMPILED}:
        check(Contract, property_name)

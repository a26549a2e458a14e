"""The kit has to catch each of these, by the property named; and to pass what is sound."""

import contextlib
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.testing import AdapterContract, WeightingContract, double_precision


def properties(contract) -> list[str]:
    return [name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")]


def check(contract, property_name):
    """Run one property as pytest would, for every value of its parameter."""
    contract = contract()
    method = getattr(contract, f"test_{property_name}")
    values = {"case": contract.cases} if isinstance(contract, AdapterContract) else {"size": lambda: contract.sizes}
    values["kind"] = lambda: contract.kinds
    wanted = list(inspect.signature(method).parameters)
    for arguments in [(value,) for value in values[wanted[0]]()] if wanted else [()]:
        with double_precision(), contextlib.suppress(pytest.skip.Exception):
            method(*arguments)


class FunctionalMaml(fsl.Adapter):
    """The reference: two SGD steps on all weights by torch.func."""

    name = "functional-maml"
    inner_lr, inner_steps = 0.3, 2

    def __init__(self, task, backbone):
        super().__init__()
        self.task, self.head = task, nn.Linear(backbone.feature_dim, task.output_dim)

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
        return own | {f"body.{name}": p for name, p in backbone.named_parameters()}

    def slope(self, backbone, fast, support):
        return grad(lambda weights: self.task.loss(self.predictor(backbone, weights)(support.x), support.y))(fast)

    def predictor(self, backbone, fast):
        body = {name.removeprefix("body."): w for name, w in fast.items() if name.startswith("body.")}
        return lambda x: F.linear(functional_call(backbone, body, (x,)), fast["head.weight"], fast["head.bias"])


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
    kinds = ("classification",)

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


SOUND = [
    CentroidContract,
    MamlContract,
    FirstOrderContract,
    TransductiveContract,
    UniformContract,
    UniformSumContract,
    SoftmaxContract,
    AgreementContract,
    DrawnContract,
]


@pytest.mark.parametrize(("contract", "property_name"), [(c, name) for c in SOUND for name in properties(c)])
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
            backbone, fsl.LabelledSet(support.x, torch.arange(self.n_way).repeat_interleave(len(support.y) // self.n_way))
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
        return lambda x: predictor(x) - predictor(x).sub(predictor(x)).square().sum(-1, keepdim=True).sqrt()


class MasksByLabel(NearestCentroid):
    def adapt(self, backbone, support):
        z = backbone(support.x)
        means = torch.stack([z[support.y == c].mean(0) for c in range(self.n_way)])
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


class AffineNormUnderVmap(FunctionalMaml):
    def __init__(self, task, backbone):
        super().__init__(task, backbone)
        self.head = nn.Sequential(nn.LayerNorm(backbone.feature_dim), nn.Linear(backbone.feature_dim, task.output_dim))

    def predictor(self, backbone, fast):
        body = {name.removeprefix("body."): w for name, w in fast.items() if name.startswith("body.")}
        head = {name.removeprefix("head."): w for name, w in fast.items() if name.startswith("head.")}
        return lambda x: functional_call(self.head, head, (functional_call(backbone, body, (x,)),))


class KeepsAGraphInEvaluation(FunctionalMaml):
    vectorizable = False

    def trajectory(self, backbone, support):
        with torch.enable_grad():
            return super().trajectory(backbone, support)

    def slope(self, backbone, fast, support):
        loss = self.task.loss(self.predictor(backbone, fast)(support.x), support.y)
        return dict(zip(fast, torch.autograd.grad(loss, list(fast.values()), create_graph=True), strict=True))


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
    (StateOutsideStateDict, "state_dict_is_the_whole_state"),
    (HiddenBetweenCalls, "predictors_do_not_share_state"),
    (RemembersTheLastTask, "adapt_changes_nothing"),
    (NotFiniteAtOneShot, "other_numbers_of_items"),
    (GradientNotFinite, "gradient_reaches_every_parameter"),
    (MasksByLabel, "vmap_equals_loop"),
    (AffineNormUnderVmap, "vmap_equals_loop"),
    (KeepsAGraphInEvaluation, "evaluation_keeps_no_graph"),
    (TrajectoryInReverse, "trajectory_ends_with_adapt"),
    (WrongShape, "predictions_have_their_shape"),
    (SinglePrecision, "predictions_have_their_shape"),
]


@pytest.mark.parametrize(("fault", "property_name"), ADAPTER_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_faulty_adapters_are_caught(fault, property_name):
    base = MamlContract if issubclass(fault, FunctionalMaml) else CentroidContract

    class Contract(base):
        kinds = ("classification",)

        def make(self, task, backbone):
            return fault(task, backbone) if base is MamlContract else fault(task)

    with pytest.raises(AssertionError) as caught:
        check(Contract, property_name)
    assert "assert " not in str(caught.value).splitlines()[0]  # a message for people, not pytest's rewriting
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
        scores = outcomes.losses - torch.nn.functional.one_hot(torch.tensor(0), len(outcomes.losses)) * outcomes.losses
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
        return ((outcomes.losses - outcomes.losses.mean()) / outcomes.losses.std(correction=0)).softmax(0)


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


class AverageOutsideStateDict(SumsToMore):
    average = 0.0

    def weigh(self, outcomes):
        self.average = 0.9 * self.average + 0.1 * outcomes.losses.mean()
        return (outcomes.losses * self.average).softmax(0)


class MisspelledNeed(SumsToMore):
    needs = frozenset({"loss"})


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
    (AverageOutsideStateDict, "state_dict_is_the_whole_state"),
    (MisspelledNeed, "claims"),
]


@pytest.mark.parametrize(("fault", "property_name"), WEIGHTING_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_faulty_weightings_are_caught(fault, property_name):
    class Contract(WeightingContract):
        def make(self):
            return fault()

    with pytest.raises(AssertionError) as caught:
        check(Contract, property_name)
    assert ". " in str(caught.value)


def test_make_has_to_be_written():
    with pytest.raises(NotImplementedError, match=r"AdapterContract\.make: not written\. A method make"):
        AdapterContract().test_claims("classification")
    with pytest.raises(NotImplementedError, match=r"WeightingContract\.make: not written\. A method make"):
        WeightingContract().test_claims()


def test_the_default_dtype_and_generator_are_restored():
    before = torch.get_rng_state()
    with contextlib.suppress(ZeroDivisionError), double_precision():
        assert torch.rand(3).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_without_gradient_is_measured():
    class Contract(CentroidContract):
        without_gradient = ("backbone.conv.*",)

    with pytest.raises(
        AssertionError, match=r"without_gradient: backbone\.conv\.bias, backbone\.conv\.weight gets one\. Drop it"
    ):
        check(Contract, "gradient_reaches_every_parameter")


def test_sorted_rows_may_be_relied_upon():
    class Contract(CentroidContract):
        any_row_order = False

        def make(self, task):
            return IgnoresLabels(task)

    for property_name in properties(Contract):
        check(Contract, property_name)

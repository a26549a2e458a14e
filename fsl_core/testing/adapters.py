"""What every adapter has to keep, whatever its inner loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fsl_core as fsl
from fsl_core.testing.tiny import TinyBackbone, double_precision, tiny_episodes, tiny_task

Kind = Literal["classification", "regression"]
Case = tuple[Kind, fsl.NormPolicy]
"""Kind of the task and normalisation of the backbone."""

TOLERANCE = 1e-9  # of results that may differ in rounding only: float64 rounds at 1e-16, inner loops amplify it
SLOPE_TOLERANCE = 1e-6  # of central differences
SLOPE_STEPS = (1e-5, 1e-6, 1e-4)  # one that crosses no kink and loses few digits agrees


class AdapterContract:
    """Inherit as `class TestMine(AdapterContract)`, write `make`, and state the claims that differ from the defaults.

    kinds:             the tasks it is for.
    label_equivariant: permuting the labels of the classes permutes the logits. With a learned head, permute its rows in
                       `permute_classes`, or claim it not.
    any_row_order:     the rows of the support set may come in any order; if False, only those of one class may.
    without_gradient:  shell patterns of parameters that get no meta-gradient, `adapter.head.*`; measured as well.

    The claims of the adapter itself, `vectorizable`, `transductive` and `order`, are measured too. Parameters are moved
    off zeros before each check, so that a zero-initialised layer hides nothing behind it.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    label_equivariant: ClassVar[bool] = True
    any_row_order: ClassVar[bool] = True
    without_gradient: ClassVar[tuple[str, ...]] = ()

    def make(self, *task_and_backbone: Any) -> fsl.Adapter:
        """A fresh adapter. Declare `task`, or `task` and `backbone`, and receive them by name."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self, task) or make(self, task, backbone) -> Adapter"
        )

    def permute_classes(self, adapter: fsl.Adapter, permutation: Tensor) -> None:
        """Give class permutation[c] what class c holds in per-class parameters, in place. Default: there are none."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases(), ids="-".join)
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.kinds)

    def cases(self) -> list[Case]:
        return [(kind, norm) for kind in self.kinds for norm in ("none", "transductive")]

    @pytest.fixture(autouse=True)
    def _double_precision(self) -> Iterator[None]:
        with double_precision():
            yield

    def test_claims(self, kind: Kind) -> None:
        adapter = self._learner((kind, "none")).adapter
        assert isinstance(adapter, fsl.Adapter), f"make: {type(adapter).__name__}. A subclass of fsl_core.Adapter"
        name = getattr(adapter, "name", None)
        assert isinstance(name, str), f"name: {name!r}. A class attribute, the word recipes write under `adapter.name`"
        assert adapter.order in (1, 2), f"order: {adapter.order!r}. 2 for an exact meta-gradient, 1 for a first-order one"

    def test_predictions_have_their_shape(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        for mode in _modes(learner):
            _check_prediction(f"adapt, {mode}", _predict(learner, episode), task, len(episode.query.x))
        learner.train()
        loss, prediction = _seeded(learner.objective, episode, task.loss)
        assert loss.shape == (), f"objective: loss of shape {tuple(loss.shape)}. A scalar"
        assert loss.isfinite(), f"objective: loss {loss.item()} on inputs of unit variance. A finite number"
        _check_prediction("objective", prediction, task, len(episode.query.x))

    def test_adapt_changes_nothing(self, case: Case) -> None:
        learner, _, episode = self._setting(case)
        for mode in _modes(learner):
            before = _snapshot(learner)
            first = _predict(learner, episode)
            after = _snapshot(learner)
            for what, value in before.items():
                assert what in after, f"adapt, {mode}: {what} is gone afterwards. Modules and parameters stay in place"
                same = torch.equal(after[what], value) if isinstance(value, Tensor) else after[what] == value
                assert same, f"adapt, {mode}: it changed {what}. Work on copies: the meta-parameters belong to the outer loop"
            added = sorted(set(after) - set(before))
            assert not added, f"adapt, {mode}: it added {', '.join(added)}. Task-specific values live in the predictor alone"
            again = _predict(learner, episode)
            assert _close(again, first), (
                f"adapt, {mode}: the same episode and seed gave other predictions the second time, {_apart(again, first)}. "
                "No state from one call to the next; random numbers from torch's global generator"
            )

    def test_predictors_do_not_share_state(self, case: Case) -> None:
        learner, _, first = self._setting(case)
        second = tiny_episodes(tiny_task(case[0]), 2).unbatch()[1]
        predictor = _seeded(learner.adapt, first)
        before = _seeded(predictor, first.query.x)
        _seeded(learner.adapt, second)(second.query.x)
        after = _seeded(predictor, first.query.x)
        assert _close(after, before), (
            f"adapt: a predictor changed once another task was adapted to, {_apart(after, before)}. "
            "Keep what was learned in the predictor, not in attributes of the adapter"
        )

    def test_support_order(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        (x, y), count = episode.support, len(episode.support.x)
        if self.any_row_order or task.kind == "regression":
            order, which = torch.randperm(count, generator=torch.Generator().manual_seed(3)), "its rows"
        else:
            order, which = torch.arange(count).view(task.n_way, -1).flip(1).flatten(), "the rows of each class"
        shuffled = episode._replace(support=fsl.LabelledSet(x[order], y[order]))
        expected, found = _predict(learner, episode), _predict(learner, shuffled)
        assert _close(found, expected), (
            f"support order: permuting {which} changes the predictions, {_apart(found, expected)}. The support set is a set; "
            "where sorted rows are relied upon, the contract says any_row_order = False"
        )

    def test_labels_are_used(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        other = _relabel(episode, task) if task.kind == "classification" else _negate_values(episode)
        expected, found = _predict(learner, episode), _predict(learner, other)
        assert not _close(found, expected), (
            "labels: the same items under other labels give the same predictions. A predictor that depends on support.y"
        )

    def test_label_equivariance(self) -> None:
        if "classification" not in self.kinds or not self.label_equivariant:
            pytest.skip("not claimed: label_equivariant")
        for case in self.cases():
            if case[0] != "classification":
                continue
            learner, task, episode = self._setting(case)
            expected = _predict(learner, episode)
            permutation = _next_class(task)
            with torch.no_grad():
                self.permute_classes(learner.adapter, permutation)
            found = _predict(learner, _relabel(episode, task))[:, permutation]
            assert _close(found, expected), (
                f"label equivariance: relabelling the classes does not just permute the logits, {_apart(found, expected)}. "
                "Treat classes alike; for a learned head write permute_classes, or claim label_equivariant = False"
            )

    def test_query_items_are_independent(self, kind: Kind) -> None:
        learner, _, episode = self._setting((kind, "none"))
        x = episode.query.x
        others = torch.cat([x[:1], 1 - 2 * x[1:]])
        changed = episode._replace(query=episode.query._replace(x=others))
        depends = []
        for mode in _modes(learner):
            together, among_others = _predict(learner, episode)[0], _predict(learner, changed)[0]
            depends.append(not _close(among_others, together))
            if learner.adapter.transductive:
                continue
            assert not depends[-1], (
                f"query items, {mode}: the prediction of one depends on the others, {_apart(among_others, together)}. "
                "No batch statistics over queries, or the adapter claims transductive = True"
            )
            alone = _seeded(_seeded(learner.adapt, episode), x[:1])[0]
            assert _close(alone, together), (
                f"query items, {mode}: an item alone is predicted otherwise than among others, {_apart(alone, together)}. "
                "No batch statistics over queries, or the adapter claims transductive = True"
            )
        if learner.adapter.transductive:
            assert any(depends), (
                "query items: transductive = True is claimed, and no prediction depends on the other queries. Drop the claim"
            )

    def test_gradient_reaches_every_parameter(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        gradients = _meta_gradient(learner, task, episode)
        exempt = {name for name in gradients if any(fnmatchcase(name, pattern) for pattern in self.without_gradient)}
        none = {name for name, gradient in gradients.items() if gradient is None or not gradient.count_nonzero()}
        unreached = sorted(none - exempt)
        assert not unreached, (
            f"meta-gradient: none for {', '.join(unreached)}. Every parameter in the path of the loss (nothing detached, no "
            "no_grad, no .data), or no such parameter, or its name in without_gradient"
        )
        reached = sorted(exempt - none)
        assert not reached, f"without_gradient: {', '.join(reached)} gets one. Drop it from the claim"
        for name, gradient in gradients.items():
            assert gradient is None or gradient.isfinite().all(), (
                f"meta-gradient: not finite for {name}. Safe square roots, logarithms and divisions"
            )

    def test_gradient_is_that_of_finite_differences(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        gradients = _meta_gradient(learner, task, episode)
        if learner.adapter.order == 1:
            pytest.skip("not claimed: order = 1")
        wrong = []
        for name, parameter in learner.named_parameters():
            if not parameter.requires_grad:
                continue
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            direction /= direction.norm()
            gradient = torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
            claimed = (gradient * direction).sum().item()
            slopes = []
            for step in SLOPE_STEPS:
                slopes.append(_slope(learner, task, episode, parameter, direction, step))
                if abs(slopes[-1] - claimed) <= SLOPE_TOLERANCE * abs(slopes[-1]) + TOLERANCE:
                    break
            else:
                wrong.append(f"{name}: {claimed:.9g} where the loss moves by {slopes[0]:.9g}")
        assert not wrong, (
            f"meta-gradient: not the slope of the objective, along one direction a parameter: {'; '.join(wrong)}. "
            "The inner loop differentiated through (create_graph=True, nothing detached), or the adapter claims order = 1"
        )

    def test_state_dict_is_the_whole_state(self, case: Case) -> None:
        first, _, episode = self._setting(case)
        second = self._learner(case, seed=1)
        second.load_state_dict(first.state_dict())
        expected, found = _predict(first, episode), _predict(second, episode)
        assert _close(found, expected), (
            f"state_dict: a fresh adapter that loads it predicts otherwise, {_apart(found, expected)}. Every tensor that matters "
            "as a parameter or a buffer (register_buffer), or the same at every construction"
        )

    def test_evaluation_keeps_no_graph(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        learner.eval()
        with torch.no_grad():
            predictor = _seeded(learner.adapt, episode)
            held = [tuple(t.shape) for t in _tensors_held_by(predictor) if t.grad_fn is not None]
            prediction = _seeded(predictor, episode.query.x)
            mode_kept = not torch.is_grad_enabled()
        assert mode_kept, "evaluation: gradients are enabled after adapt. A `with torch.enable_grad():` around the inner loop"
        held += [tuple(prediction.shape)] if prediction.requires_grad else []
        assert not held, (
            f"evaluation: under torch.no_grad() the predictor keeps a graph, tensors of shape {held}. "
            "Detached fast weights where torch.is_grad_enabled() is False, or memory grows with the inner steps"
        )
        _check_prediction("evaluation under torch.no_grad()", prediction, task, len(episode.query.x))
        expected = _predict(learner, episode)
        assert _close(prediction, expected), (
            f"evaluation: predictions under torch.no_grad() are others, {_apart(prediction, expected)}. "
            "An inner loop that enables gradients for itself"
        )

    def test_other_numbers_of_items(self, kind: Kind) -> None:
        for n_shot, n_query in ((1, 3), (4, 1)):
            learner, task, episode = self._setting((kind, "none"), n_shot=n_shot, n_query=n_query)
            _check_prediction(f"{n_shot} shot, {n_query} queries", _predict(learner, episode), task, len(episode.query.x))
            predictor = _seeded(learner.adapt, episode)
            for x in (episode.query.x[:1], torch.cat([episode.query.x] * 3)):
                _check_prediction(f"{n_shot} shot, {len(x)} queries at once", _seeded(predictor, x), task, len(x))

    def test_trajectory_ends_with_adapt(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        for mode in _modes(learner):
            predictors = _seeded(learner.trajectory, episode)
            assert predictors, f"trajectory, {mode}: empty. At least the predictor that adapt returns"
            predictions = [_seeded(predictor, episode.query.x) for predictor in predictors]
            for step, prediction in enumerate(predictions):
                _check_prediction(f"trajectory[{step}], {mode}", prediction, task, len(episode.query.x))
            expected = _predict(learner, episode)
            assert _close(predictions[-1], expected), (
                f"trajectory, {mode}: its last predictor is not that of adapt, {_apart(predictions[-1], expected)}. "
                "Predictors before adaptation and after each inner step, in this order"
            )

    def test_vmap_equals_loop(self, case: Case) -> None:
        learner, task, _ = self._setting(case)
        if not learner.adapter.vectorizable:
            pytest.skip("not claimed: vectorizable = False")
        episodes = tiny_episodes(task, 2)
        parameters = {name: p.detach() for name, p in learner.named_parameters() if p.requires_grad}
        module = _Objective(learner, task)

        def objective(weights: dict[str, Tensor], episode: fsl.Episode) -> Tensor:
            return functional_call(module, {f"learner.{name}": w for name, w in weights.items()}, (episode,))

        def total(weights: dict[str, Tensor]) -> Tensor:
            return vmap(objective, (None, 0))(weights, episodes).sum()

        try:
            losses = vmap(objective, (None, 0))(parameters, episodes)
            per_task = vmap(grad(objective), (None, 0))(parameters, episodes)
            summed = grad(total)(parameters)
        except Exception as error:
            raise AssertionError(
                f"vmap: torch.func refuses the adapter: {error}. Index by fsl.one_hot(y, n_way) and a product instead of a mask, "
                "read no value (.item(), if tensor), patch no module; or the adapter claims vectorizable = False"
            ) from error
        for i, episode in enumerate(episodes.unbatch()):
            loss = _seeded(learner.objective, episode, task.loss)[0]
            assert _close(losses[i], loss), f"vmap: loss {losses[i].item()} of a task, {loss.item()} in a loop. {_VMAP_REMEDY}"
            reference = _flat(_meta_gradient(learner, task, episode), parameters)
            found = _flat({name: g[i] for name, g in per_task.items()}, parameters)
            assert _close(found, reference), (
                f"vmap(grad): not the loop's meta-gradient, {_apart(found, reference)}. {_VMAP_REMEDY}"
            )
        reference = sum(_flat(_meta_gradient(learner, task, episode), parameters) for episode in episodes.unbatch())
        found = _flat(summed, parameters)
        assert _close(found, reference), f"grad(vmap): not the loop's meta-gradient, {_apart(found, reference)}. {_VMAP_REMEDY}"

    def _learner(self, case: Case, seed: int = 0, **shape: int) -> fsl.Learner:
        kind, norm = case
        torch.manual_seed(seed)
        injected = {"task": tiny_task(kind, **shape), "backbone": TinyBackbone(norm)}
        declared = inspect.signature(self.make).parameters
        adapter = self.make(**{name: value for name, value in injected.items() if name in declared})
        learner = fsl.Learner(injected["backbone"], adapter)
        _leave_zeros(learner)
        return learner.train()

    def _setting(self, case: Case, **shape: int) -> tuple[fsl.Learner, fsl.TaskShape, fsl.Episode]:
        task = tiny_task(case[0], **shape)
        return self._learner(case, **shape), task, tiny_episodes(task, 1).unbatch()[0]


_VMAP_REMEDY = "Affine BatchNorm and LayerNorm are wrong under vmap: use fsl.Norm; or the adapter claims vectorizable = False"


_OF_PARTIAL = ("func", "args", "keywords")


class _Objective(nn.Module):
    def __init__(self, learner: fsl.Learner, task: fsl.TaskShape):
        super().__init__()
        self.learner, self.task = learner, task

    def forward(self, episode: fsl.Episode) -> Tensor:
        return self.learner.objective(episode, self.task.loss)[0]


def _seeded(function: Any, *arguments: Any) -> Any:
    torch.manual_seed(2)
    return function(*arguments)


def _predict(learner: fsl.Learner, episode: fsl.Episode) -> Tensor:
    return _seeded(lambda: learner.adapt(episode)(episode.query.x))


def _modes(learner: fsl.Learner) -> Iterator[str]:
    yield "training" if learner.train() else ""
    yield "evaluation" if learner.eval() else ""


@torch.no_grad()
def _leave_zeros(learner: fsl.Learner) -> None:
    """Scale every number a little, which keeps its sign, and make zeros small numbers."""
    for parameter in learner.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(torch.where(parameter == 0, 0.1 * noise, parameter * (1 + 0.05 * noise.tanh())))


def _snapshot(learner: fsl.Learner) -> dict[str, Any]:
    seen: dict[str, Any] = {f"the value of {name}": value.clone() for name, value in learner.state_dict().items()}
    for name, parameter in learner.named_parameters():
        seen[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        seen[f"{name}.requires_grad"] = parameter.requires_grad
    for name, module in learner.named_modules():
        seen[f"the mode (training or evaluation) of {name or 'the learner'}"] = module.training
    return seen | {"torch.is_grad_enabled()": torch.is_grad_enabled()}


def _check_prediction(where: str, prediction: Tensor, task: fsl.TaskShape, count: int) -> None:
    expected = (count, task.output_dim)
    assert prediction.shape == expected, f"{where}: prediction of shape {tuple(prediction.shape)}. Expected {expected}"
    assert prediction.dtype == torch.float64, f"{where}: {prediction.dtype} for torch.float64 inputs. The dtype of the features"
    assert prediction.isfinite().all(), f"{where}: predictions that are not finite. Finite ones for inputs of unit variance"


def _apart(found: Tensor, expected: Tensor) -> str:
    return f"by {(found - expected).abs().max().item():.2g} where the largest is {expected.abs().max().item():.2g}"


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-3))


def _next_class(task: fsl.TaskShape) -> Tensor:
    return (torch.arange(task.n_way) + 1) % task.n_way


def _relabel(episode: fsl.Episode, task: fsl.TaskShape) -> fsl.Episode:
    """Class c is called c + 1, the last one 0; rows sorted by class, as they are in every episode."""

    def relabel(items: fsl.LabelledSet) -> fsl.LabelledSet:
        y = _next_class(task)[items.y]
        order = y.argsort(stable=True)
        return fsl.LabelledSet(items.x[order], y[order])

    return episode._replace(support=relabel(episode.support))


def _negate_values(episode: fsl.Episode) -> fsl.Episode:
    return episode._replace(support=episode.support._replace(y=-episode.support.y))


def _meta_gradient(learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    loss = _seeded(learner.objective, episode, task.loss)[0]
    assert loss.requires_grad, (
        "meta-gradient: the objective depends on no parameter. Nothing detached and no torch.no_grad() on the way to the loss"
    )
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))


def _flat(gradients: dict[str, Tensor | None], like: dict[str, Tensor]) -> Tensor:
    return torch.cat([(torch.zeros_like(v) if gradients[k] is None else gradients[k]).flatten() for k, v in like.items()])


def _slope(
    learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode, parameter: Tensor, direction: Tensor, step: float
) -> float:
    """Central difference of the objective along a direction of one parameter."""
    centre, losses = parameter.detach().clone(), []
    for move in (step, -step):
        with torch.no_grad():
            parameter.copy_(centre + move * direction)
        losses.append(_seeded(learner.objective, episode, task.loss)[0].item())
    with torch.no_grad():
        parameter.copy_(centre)
    return (losses[0] - losses[1]) / (2 * step)


def _tensors_held_by(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Tensors that a predictor keeps alive: in its closure, defaults, bound object, attributes and containers."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (type, ModuleType)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_held_by(list(value.values()), seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _tensors_held_by(part, seen)
    else:
        for name in ("__closure__", "cell_contents", "__defaults__", "__kwdefaults__", "__self__", "__dict__", *_OF_PARTIAL):
            with suppress(AttributeError, ValueError):  # ValueError: a cell that is not filled
                yield from _tensors_held_by(getattr(value, name), seen)

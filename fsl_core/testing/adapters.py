"""What every adapter has to keep, whatever its inner loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.engine import soundness
from fsl_core.testing import checks
from fsl_core.testing.adapter_executions import AdapterExecutions
from fsl_core.testing.adapter_setting import (
    KINDS,
    Case,
    Kind,
    check_prediction,
    meta_gradient,
    modes_of_still,
    predict,
)
from fsl_core.testing.tiny import tiny_episodes, tiny_task

_HOLDERS = (
    "__closure__",
    "cell_contents",
    "__defaults__",
    "__kwdefaults__",
    "__self__",
    "__dict__",
)
_OF_PARTIAL = ("func", "args", "keywords")


class AdapterContract(AdapterExecutions):
    """Inherit as `class TestMine(AdapterContract)` and write `make`.

    State the claims that differ from the defaults:

    kinds: the tasks it is for.
    label_equivariant: permuting the labels of the classes permutes the logits. With a learned
        head, permute its rows in `permute_classes`, or set this to False.
    any_row_order: the rows of the support set may come in any order; if False, only those of one
        class may.
    without_gradient: shell patterns of parameters that get no meta-gradient, such as
        `adapter.head.*`; measured as well.
    adapts_frozen: a task changes weights of the backbone that require no gradient, as an option
        says.

    The claims of the adapter itself, `vectorizable`, `transductive` and `order`, are measured too.
    Parameters are moved off zeros before each check, so that a zero-initialised layer hides nothing
    behind it.
    """

    foundations: ClassVar[tuple[str, ...]] = (
        "claims",
        "predictions_have_their_shape",
        "adapt_changes_nothing",
    )
    further: ClassVar[dict[str, tuple[str, ...]]] = {
        "gradient_is_that_of_finite_differences": ("gradient_reaches_every_parameter",),
        "compiled_equals_the_loop": ("every_execution_equals_the_loop",),
    }
    only: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(
        ("gradient_reaches_every_parameter", "other_numbers_of_items"), foundations[:2]
    )
    label_equivariant: ClassVar[bool] = True
    any_row_order: ClassVar[bool] = True
    without_gradient: ClassVar[tuple[str, ...]] = ()
    adapts_frozen: ClassVar[bool] = False

    def test_claims(self, kind: Kind) -> None:
        adapter = self._learner((kind, "none")).adapter
        name = getattr(adapter, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under `adapter.name`"
        )
        assert adapter.order in (1, 2), (
            f"order: {adapter.order!r}. 2 for an exact meta-gradient, 1 for a first-order one"
        )

    def test_other_kinds_of_tasks_are_refused(self) -> None:
        for kind in sorted(set(KINDS) - set(self.kinds)):
            try:
                self._learner((kind, "none"))
            except ValueError:
                continue
            raise AssertionError(
                f"kinds: it takes a {kind} task, which it does not claim. {kind!r} in kinds, or a "
                "constructor that raises ValueError for it, so that a recipe is refused before it "
                "runs"
            )

    def test_predictions_have_their_shape(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        count = len(episode.query.x)
        for mode in checks.modes(learner):
            check_prediction(f"adapt, {mode}", predict(learner, episode), task, count)
        learner.train()
        loss, prediction = checks.seeded(learner.objective, episode, task.loss)
        wrong = soundness.wrong_loss(loss)
        assert not wrong, f"objective: {wrong}"
        check_prediction("objective", prediction, task, count)

    def test_adapt_changes_nothing(self, case: Case) -> None:
        learner, _, episode = self._setting(case)
        for mode in checks.modes(learner):
            before = soundness.snapshot(learner, "the learner")
            first = predict(learner, episode)
            after = soundness.snapshot(learner, "the learner")
            remedy = "Work on copies: the meta-parameters belong to the outer loop"
            checks.assert_unchanged(before, after, f"adapt, {mode}", remedy)
            again = predict(learner, episode)
            assert checks.close(again, first), (
                f"adapt, {mode}: the same episode and seed gave other predictions the second time, "
                f"{soundness.apart(again, first)}. "
                "No state from one call to the next; random numbers from torch's global generator"
            )

    def test_predictors_do_not_share_state(self, case: Case) -> None:
        learner, _, first = self._setting(case)
        second = tiny_episodes(tiny_task(case[0]), 2).unbatch()[1]
        predictor = checks.seeded(learner.adapt, first)
        before = checks.seeded(predictor, first.query.x)
        checks.seeded(learner.adapt, second)(second.query.x)
        after = checks.seeded(predictor, first.query.x)
        assert checks.close(after, before), (
            f"adapt: a predictor changed once another task was adapted to, "
            f"{soundness.apart(after, before)}. "
            "Keep what was learned in the predictor, not in attributes of the adapter"
        )

    def test_support_order(self, case: Case) -> None:
        learner, task, episode = self._still(case)
        (x, y), count = episode.support, len(episode.support.x)
        order, which = torch.randperm(count, generator=_generator(3)), "its rows"
        if not self.any_row_order and task.kind == "classification":
            order = torch.arange(count).view(task.n_way, -1).flip(1).flatten()
            which = "the rows of each class"
        shuffled = episode._replace(support=fsl.LabelledSet(x[order], y[order]))
        expected, found = predict(learner, episode), predict(learner, shuffled)
        assert checks.close(found, expected), (
            f"support order: permuting {which} changes the predictions, "
            f"{soundness.apart(found, expected)}. The support set is a "
            "set; if sorted rows are relied upon, the contract says any_row_order = False"
        )

    def test_labels_are_used(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        classes = task.kind == "classification"
        other = _relabel(episode, task) if classes else _negate_values(episode)
        expected, found = predict(learner, episode), predict(learner, other)
        assert not checks.close(found, expected), (
            "labels: the same items under other labels give the same predictions. A predictor that "
            "depends on support.y"
        )

    def test_label_equivariance(self) -> None:
        if "classification" not in self.kinds or not self.label_equivariant:
            pytest.skip("not claimed: label_equivariant")
        for case in self.cases():
            if case[0] != "classification":
                continue
            learner, task, episode = self._still(case)
            expected = predict(learner, episode)
            permutation = _next_class(task)
            with torch.no_grad():
                self.permute_classes(learner.adapter, permutation)
            found = predict(learner, _relabel(episode, task))[:, permutation]
            assert checks.close(found, expected), (
                f"label equivariance: relabelling the classes does not just permute the logits, "
                f"{soundness.apart(found, expected)}. "
                "Treat classes alike; for a learned head write permute_classes, or claim "
                "label_equivariant = False"
            )

    def test_query_items_are_independent(self, kind: Kind) -> None:
        learner, _, episode = self._still((kind, "none"))
        x = episode.query.x
        others = torch.cat([x[:1], 1 - 2 * x[1:]])
        changed = episode._replace(query=episode.query._replace(x=others))
        depends = []
        for mode in modes_of_still(learner):
            together, among_others = predict(learner, episode)[0], predict(learner, changed)[0]
            depends.append(not checks.close(among_others, together))
            if learner.adapter.transductive:
                continue
            assert not depends[-1], (
                f"query items, {mode}: the prediction of one depends on the others, "
                f"{soundness.apart(among_others, together)}. "
                "No batch statistics over queries, or the adapter claims transductive = True"
            )
            alone = checks.seeded(checks.seeded(learner.adapt, episode), x[:1])[0]
            assert checks.close(alone, together), (
                f"query items, {mode}: an item alone is predicted otherwise than among others, "
                f"{soundness.apart(alone, together)}. "
                "No batch statistics over queries, or the adapter claims transductive = True"
            )
        if learner.adapter.transductive:
            assert any(depends), (
                "query items: transductive = True is claimed, and no prediction depends on the "
                "other queries. Drop the claim"
            )

    def test_gradient_reaches_every_parameter(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        gradients = meta_gradient(learner, task, episode)
        exempt = {name for name in gradients if self._exempt(name)}
        none = checks.without_any(gradients)
        unreached = sorted(none - exempt)
        assert not unreached, (
            f"meta-gradient: none for {', '.join(unreached)}. Every parameter in the path of the "
            "loss (nothing detached, no no_grad, no .data), or no such parameter, or its name in "
            "without_gradient"
        )
        reached = sorted(exempt - none)
        assert not reached, (
            f"without_gradient: {', '.join(reached)} gets one. Drop it from the claim"
        )
        for name, gradient in gradients.items():
            assert gradient is None or gradient.isfinite().all(), (
                f"meta-gradient: not finite for {name}. Safe square roots, logarithms and divisions"
            )

    def _exempt(self, parameter: str) -> bool:
        return any(fnmatchcase(parameter, pattern) for pattern in self.without_gradient)

    def test_gradient_is_that_of_finite_differences(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        gradients = meta_gradient(learner, task, episode)
        if learner.adapter.order == 1:
            pytest.skip("not claimed: order = 1")

        def objective() -> float:
            return checks.seeded(learner.objective, episode, task.loss)[0].item()

        wrong = checks.wrong_slopes(objective, learner, gradients)
        assert not wrong, (
            "meta-gradient: not the slope of the objective, along one direction a parameter: "
            f"{'; '.join(wrong)}. The inner loop differentiated through (create_graph=True, "
            "nothing detached), or the adapter claims order = 1"
        )

    def test_frozen_weights_stay(self, kind: Kind) -> None:
        learner, _, episode = self._setting((kind, "none"), frozen=True)
        layer = learner.get_submodule("backbone.linear")
        own = layer.get_parameter("weight").detach().clone()
        for mode in checks.modes(learner):
            predict = checks.seeded(learner.adapt, episode)
            seen: list[Tensor] = []
            with checks.watched(layer, seen):
                checks.seeded(predict, episode.query.x)
            moved = not all(torch.equal(weight, own) for weight in seen)
            assert self.adapts_frozen or not moved, (
                f"frozen weights, {mode}: a task changes a weight that requires no gradient. Those "
                "that do when the adapter is built as fast weights, or the claim "
                "adapts_frozen = True"
            )
            assert moved or not (seen and self.adapts_frozen), (
                f"frozen weights, {mode}: adapts_frozen = True is claimed, and they stay. Drop it"
            )

    def test_backbone_is_kept(self, kind: Kind) -> None:
        computed = []
        for claimed in (True, False):
            learner, task, episode = self._setting((kind, "ordinary"))
            if not learner.adapter.keeps_backbone:
                pytest.skip("not claimed: keeps_backbone")
            learner.adapter.keeps_backbone = claimed
            loss = checks.seeded(learner.objective, episode, task.loss)[0].detach()
            gradients = meta_gradient(learner, task, episode)
            zero = torch.zeros(())  # where a parameter is not reached
            slopes = {name: zero if g is None else g for name, g in gradients.items()}
            computed.append({"loss": loss, **slopes})
        together, apart = computed
        wrong = checks.differences(together, apart)
        assert not wrong, (
            f"keeps_backbone: with one call for the features of both sets, {wrong[0]}. No "
            "change of the backbone between its calls (weights, attributes, hooks), or "
            "keeps_backbone = False"
        )

    def test_checkpoint_is_the_whole_state(self, case: Case) -> None:
        first, _, episode = self._setting(case)
        second = self._learner(case, seed=1)
        checks.through_a_checkpoint(first, second, "learner")
        expected, found = predict(first, episode), predict(second, episode)
        assert checks.close(found, expected), (
            f"checkpoint: a fresh adapter that loads it predicts otherwise, "
            f"{soundness.apart(found, expected)}. Every tensor that matters as a parameter or a "
            "buffer (register_buffer), or the same at every construction"
        )

    def test_evaluation_keeps_no_graph(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        learner.eval()
        with torch.no_grad():
            predictor = checks.seeded(learner.adapt, episode)
            held = [tuple(t.shape) for t in _tensors_held_by(predictor) if t.grad_fn is not None]
            prediction = checks.seeded(predictor, episode.query.x)
            mode_kept = not torch.is_grad_enabled()
        assert mode_kept, (
            "evaluation: gradients are enabled after adapt. A `with torch.enable_grad():` around "
            "the inner loop"
        )
        if learner.takes_gradients:  # it has none without, and core detaches what it predicts
            held = []
        held += [tuple(prediction.shape)] if prediction.requires_grad else []
        assert not held, (
            "evaluation: under torch.no_grad() the predictor keeps a graph, tensors of shape "
            f"{held}. Detached fast weights if torch.is_grad_enabled() is False, or memory grows "
            "with the inner steps"
        )
        where = "evaluation under torch.no_grad()"
        check_prediction(where, prediction, task, len(episode.query.x))
        expected = predict(learner, episode)
        assert checks.close(prediction, expected), (
            f"evaluation: predictions under torch.no_grad() are others, "
            f"{soundness.apart(prediction, expected)}. "
            "An inner loop that enables gradients for itself"
        )

    def test_trajectory_ends_with_adapt(self, case: Case) -> None:
        learner, task, episode = self._still(case)
        for mode in modes_of_still(learner):
            predictors = checks.seeded(learner.trajectory, episode)
            assert predictors, (
                f"trajectory, {mode}: empty. At least the predictor that adapt returns"
            )
            predictions = [checks.seeded(predictor, episode.query.x) for predictor in predictors]
            for step, prediction in enumerate(predictions):
                where = f"trajectory[{step}], {mode}"
                check_prediction(where, prediction, task, len(episode.query.x))
            expected = predict(learner, episode)
            assert checks.close(predictions[-1], expected), (
                f"trajectory, {mode}: its last predictor is not that of adapt, "
                f"{soundness.apart(predictions[-1], expected)}. "
                "Predictors before adaptation and after each inner step, in this order"
            )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _next_class(task: fsl.TaskShape) -> Tensor:
    return (torch.arange(task.n_way) + 1) % task.n_way


def _relabel(episode: fsl.Episode, task: fsl.TaskShape) -> fsl.Episode:
    """Class c is called c + 1, the last one 0.

    Rows are sorted by class, as they are in every episode.
    """

    def relabel(items: fsl.LabelledSet) -> fsl.LabelledSet:
        y = _next_class(task)[items.y]
        order = y.argsort(stable=True)
        return fsl.LabelledSet(items.x[order], y[order])

    return episode._replace(support=relabel(episode.support))


def _negate_values(episode: fsl.Episode) -> fsl.Episode:
    return episode._replace(support=episode.support._replace(y=-episode.support.y))


def _tensors_held_by(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Tensors that a predictor keeps alive.

    They may be in its closure, defaults, bound object, attributes and containers.
    """
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
        for name in (*_HOLDERS, *_OF_PARTIAL):
            with suppress(AttributeError, ValueError):  # ValueError: a cell that is not filled
                yield from _tensors_held_by(getattr(value, name), seen)

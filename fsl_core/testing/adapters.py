"""What every adapter has to keep, whatever its inner loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.seeding import set_seed
from fsl_core.engine import soundness
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.workers import draws_random_numbers
from fsl_core.testing import checks
from fsl_core.testing.tiny import (
    TinyBackbone,
    as_batch,
    double_precision,
    tiny_episodes,
    tiny_task,
    unequal_episodes,
)
from fsl_core.text import first_line

Kind = Literal["classification", "regression"]
Case = tuple[Kind, fsl.NormPolicy]
"""Kind of the task and normalisation of the backbone."""

KINDS: tuple[Kind, ...] = ("classification", "regression")


class AdapterContract(checks.Contract):
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
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    label_equivariant: ClassVar[bool] = True
    any_row_order: ClassVar[bool] = True
    without_gradient: ClassVar[tuple[str, ...]] = ()
    adapts_frozen: ClassVar[bool] = False

    def make(self, *task_and_backbone: Any) -> fsl.Adapter:
        """A fresh adapter. Declare `task`, or `task` and `backbone`, and receive them by name."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self, task) or "
            "make(self, task, backbone) -> Adapter"
        )

    def permute_classes(self, adapter: fsl.Adapter, permutation: Tensor) -> None:
        """Give class permutation[c] what class c holds in per-class parameters, in place.

        Default: there are none.
        """

    def values_of(self, parameter: str) -> Sequence[Any]:
        return {"case": self.cases(), "kind": self.kinds}[parameter]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks.parametrize(metafunc, {"case": self.cases(), "kind": self.kinds})

    def cases(self) -> list[Case]:
        return [(kind, norm) for kind in self.kinds for norm in ("none", "transductive")]

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
            _check_prediction(f"adapt, {mode}", _predict(learner, episode), task, count)
        learner.train()
        loss, prediction = checks.seeded(learner.objective, episode, task.loss)
        wrong = soundness.wrong_loss(loss)
        assert not wrong, f"objective: {wrong}"
        _check_prediction("objective", prediction, task, count)

    def test_adapt_changes_nothing(self, case: Case) -> None:
        learner, _, episode = self._setting(case)
        for mode in checks.modes(learner):
            before = soundness.snapshot(learner, "the learner")
            first = _predict(learner, episode)
            after = soundness.snapshot(learner, "the learner")
            remedy = "Work on copies: the meta-parameters belong to the outer loop"
            checks.assert_unchanged(before, after, f"adapt, {mode}", remedy)
            again = _predict(learner, episode)
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
        expected, found = _predict(learner, episode), _predict(learner, shuffled)
        assert checks.close(found, expected), (
            f"support order: permuting {which} changes the predictions, "
            f"{soundness.apart(found, expected)}. The support set is a "
            "set; if sorted rows are relied upon, the contract says any_row_order = False"
        )

    def test_labels_are_used(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        classes = task.kind == "classification"
        other = _relabel(episode, task) if classes else _negate_values(episode)
        expected, found = _predict(learner, episode), _predict(learner, other)
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
            expected = _predict(learner, episode)
            permutation = _next_class(task)
            with torch.no_grad():
                self.permute_classes(learner.adapter, permutation)
            found = _predict(learner, _relabel(episode, task))[:, permutation]
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
        for mode in _modes_of_still(learner):
            together, among_others = _predict(learner, episode)[0], _predict(learner, changed)[0]
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
        gradients = _meta_gradient(learner, task, episode)
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
        gradients = _meta_gradient(learner, task, episode)
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

    def test_checkpoint_is_the_whole_state(self, case: Case) -> None:
        first, _, episode = self._setting(case)
        second = self._learner(case, seed=1)
        checks.through_a_checkpoint(first, second, "learner")
        expected, found = _predict(first, episode), _predict(second, episode)
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
        _check_prediction(where, prediction, task, len(episode.query.x))
        expected = _predict(learner, episode)
        assert checks.close(prediction, expected), (
            f"evaluation: predictions under torch.no_grad() are others, "
            f"{soundness.apart(prediction, expected)}. "
            "An inner loop that enables gradients for itself"
        )

    def test_other_numbers_of_items(self, kind: Kind) -> None:
        for n_shot, n_query in ((1, 3), (4, 1)):
            wanted = tiny_task(kind, n_shot=n_shot, n_query=n_query)
            learner, task, episode = self._setting((kind, "none"), wanted)
            found, where = _predict(learner, episode), f"{n_shot} shot, {n_query} queries"
            _check_prediction(where, found, task, len(episode.query.x))
            predictor = checks.seeded(learner.adapt, episode)
            for x in (episode.query.x[:1], torch.cat([episode.query.x] * 3)):
                where = f"{n_shot} shot, {len(x)} queries at once"
                _check_prediction(where, checks.seeded(predictor, x), task, len(x))

    def test_other_ways_and_shots(self, kind: Kind) -> None:
        learner, task, episode = self._setting((kind, "none"))
        expected = _predict(learner, episode)
        n_way, n_shot = task.n_way + 1, task.n_shot + 1
        wanted = {f"n_shot {n_shot}": tiny_task(kind, n_shot=n_shot)}
        if kind == "classification":
            wanted[f"n_way {n_way}"] = tiny_task(kind, n_way=n_way)
        served = []
        for told, shape in wanted.items():
            twin, other, another = self._setting((kind, "none"), shape)
            if _shapes(twin) != _shapes(learner):
                continue  # weights of a fixed size: recipes that change it are refused
            twin.load_state_dict(learner.state_dict())
            where = f"ways and shots: {told} after {task.n_way} ways and {task.n_shot} shots"
            try:
                prediction = _predict(twin, another)
            except Exception as error:
                raise AssertionError(
                    f"{where}: {error}. Sizes from the TaskShape that the constructor gets"
                ) from error
            _check_prediction(where, prediction, other, len(another.query.x))
            found = _predict(learner, episode)
            assert checks.close(found, expected), (
                f"{where}: the first one now predicts otherwise, "
                f"{soundness.apart(found, expected)}. No shape or tensor of one task "
                "where another finds it"
            )
            served.append(told)
        if not served:
            pytest.skip("not claimed: weights of a size fixed by n_way and n_shot")

    def test_unequal_shots(self, case: Case) -> None:
        learner, task, _ = self._setting(case)
        if task.kind != "classification" or not learner.adapter.unequal_shots:
            pytest.skip("not claimed: unequal_shots")
        learner, task = self._still(case)[:2]
        (episode,) = unequal_episodes(_unequal(task), 1, SHOTS).unbatch()
        try:
            expected = _predict(learner, episode)
        except Exception as error:
            raise AssertionError(
                f"unequal shots: {SHOTS} items of the classes: {first_line(error)}. {_UNEQUAL}"
            ) from error
        _check_prediction("unequal shots", expected, task, len(episode.query.x))
        # Item 2 now belongs to class 1, so the classes have as many items each.
        moved = fsl.LabelledSet(episode.support.x, torch.arange(task.n_way).repeat_interleave(2))
        assert not checks.close(_predict(learner, episode._replace(support=moved)), expected), (
            f"unequal shots: predictions stay when an item gets the label of another class. "
            f"{_UNEQUAL}"
        )

    def test_shapes_of_a_batch(self, case: Case) -> None:
        """Groups of several ways and shots: every execution gives what the loop gives."""
        learner, task, _ = self._setting(case)
        fitted = Fitting(learner, task, lambda shape: self._learner(case, shape))
        parts = self._served(case, learner, task)
        if len(parts) < 2:
            pytest.skip("not claimed: unequal_shots, or weights for any number of ways or shots")
        groups = as_batch(parts)
        with checks.alike_in_every_execution(learner, task.loss, parts[0][1]):
            # a shape has two episodes: a chunk of two would be all of them
            whole = [e for e in checks.executions(learner.adapter) if e.chunk is None]
            remedies = dict.fromkeys(whole, _VMAP_REMEDY)
            checks.assert_equals_the_loop(fitted, task.loss, groups, remedies)

    def _served(
        self, case: Case, learner: fsl.Learner, task: fsl.TaskShape
    ) -> list[tuple[fsl.TaskShape, fsl.Episode]]:
        """Shapes that one set of weights serves, with episodes of each."""
        kind, n_shot = case[0], task.n_shot + 1
        shapes = [task, tiny_task(kind, n_shot=n_shot)]
        if kind == "classification":
            shapes.append(tiny_task(kind, n_way=task.n_way + 1))
        served = [s for s in shapes if _shapes(self._learner(case, s)) == _shapes(learner)]
        parts = [(shape, tiny_episodes(shape, 2, seed)) for seed, shape in enumerate(served)]
        if kind == "classification" and learner.adapter.unequal_shots:
            parts.append((_unequal(task), unequal_episodes(_unequal(task), 2, SHOTS, 7)))
        return parts

    def test_trajectory_ends_with_adapt(self, case: Case) -> None:
        learner, task, episode = self._still(case)
        for mode in _modes_of_still(learner):
            predictors = checks.seeded(learner.trajectory, episode)
            assert predictors, (
                f"trajectory, {mode}: empty. At least the predictor that adapt returns"
            )
            predictions = [checks.seeded(predictor, episode.query.x) for predictor in predictors]
            for step, prediction in enumerate(predictions):
                where = f"trajectory[{step}], {mode}"
                _check_prediction(where, prediction, task, len(episode.query.x))
            expected = _predict(learner, episode)
            assert checks.close(predictions[-1], expected), (
                f"trajectory, {mode}: its last predictor is not that of adapt, "
                f"{soundness.apart(predictions[-1], expected)}. "
                "Predictors before adaptation and after each inner step, in this order"
            )

    def test_every_execution_equals_the_loop(self, case: Case) -> None:
        learner, task, _ = self._setting(case)
        episodes, allowed = tiny_episodes(task, 3), checks.executions(learner.adapter)
        if not allowed:
            pytest.skip("not claimed: vectorizable = False, threadable = False")
        with checks.alike_in_every_execution(learner, task.loss, episodes):
            remedies = {
                execution: _REMEDY if execution.mode == "loop" else _VMAP_REMEDY
                for execution in allowed
            }
            checks.assert_equals_the_loop(learner, task.loss, episodes, remedies)

    def test_compiled_equals_the_loop(self, kind: Kind, compiled: bool) -> None:
        learner, task = self._deterministic((kind, "transductive"))
        if not learner.adapter.vectorizable:
            pytest.skip("not claimed: vectorizable = False")
        remedies = {Execution("compiled"): _COMPILED_REMEDY}
        checks.assert_equals_the_loop(learner, task.loss, tiny_episodes(task, 3), remedies)

    def test_single_precision(self, kind: Kind) -> None:
        learner, task, episode = self._setting((kind, "none"))
        expected, random = _predict(learner, episode), self._draws(learner, task, episode)
        single = checks.cast(episode, torch.float32)
        with double_precision(torch.float32):
            learner.float()
            try:
                found = _predict(learner, single)
                gradients = _meta_gradient(learner, task, single)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise AssertionError(
                    f"float32: {reason}. The dtype of the features for new tensors"
                ) from error
            _check_prediction("float32", found, task, len(episode.query.x), torch.float32)
        for name, gradient in gradients.items():
            assert gradient is None or gradient.isfinite().all(), (
                f"float32: a meta-gradient of {name} that is not finite. A larger epsilon, because "
                "float32 rounds at 1e-7"
            )
        assert random or checks.close(found.double(), expected, checks.SINGLE_TOLERANCE), (
            f"float32: predictions other than in float64, "
            f"{soundness.apart(found.double(), expected)}. Steps that lose fewer "
            "digits: no difference of large numbers, a damped solve instead of an inverse"
        )

    def test_device(self, kind: Kind, device: str) -> None:
        learner, task, episode = self._setting((kind, "none"))
        expected, random = _predict(learner, episode), self._draws(learner, task, episode)
        learner, _, _ = self._setting((kind, "none"))  # afresh: it may keep what it has seen
        with checks.on_device(device):
            elsewhere = checks.cast(episode, device)
            learner.to(device)
            found = _predict(learner, elsewhere)
            loss = checks.seeded(learner.objective, elsewhere, task.loss)[0]
            trained = [p for p in learner.parameters() if p.requires_grad]
            torch.autograd.grad(loss, trained, allow_unused=True)
        assert found.device.type == device, (
            f"device {device}: predictions on {found.device}. The device of the queries"
        )
        assert found.shape == expected.shape, (
            f"device {device}: shape {tuple(found.shape)}. Expected {tuple(expected.shape)}"
        )
        assert random or checks.close(found.cpu(), expected, 1e-6), (
            f"device {device}: predictions other than on the CPU, "
            f"{soundness.apart(found.cpu(), expected)}. The same computation"
        )

    @staticmethod
    def _draws(learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode) -> bool:
        return draws_random_numbers(lambda: learner.train().objective(episode, task.loss))

    def _deterministic(self, case: Case) -> tuple[fsl.Learner, fsl.TaskShape]:
        learner, task, episode = self._setting(case)
        if self._draws(learner, task, episode):
            pytest.skip(checks.DRAWS)
        return learner, task

    def _still(self, case: Case) -> tuple[fsl.Learner, fsl.TaskShape, fsl.Episode]:
        """In evaluation mode if it draws random numbers in training, as dropout does row by row."""
        learner, task, episode = self._setting(case)
        return learner.train(not self._draws(learner, task, episode)), task, episode

    def _learner(
        self, case: Case, task: fsl.TaskShape | None = None, seed: int = 0, frozen: bool = False
    ) -> fsl.Learner:
        kind, norm = case
        set_seed(seed)
        backbone = TinyBackbone(norm)
        backbone.linear.requires_grad_(not frozen)
        injected = {"task": task or tiny_task(kind), "backbone": backbone}
        declared = inspect.signature(self.make).parameters
        given = {name: value for name, value in injected.items() if name in declared}
        adapter = checks.made(lambda: self.make(**given), fsl.Adapter)
        learner = fsl.Learner(backbone, adapter)
        checks.leave_zeros(learner)
        return learner.train()

    def _setting(
        self, case: Case, task: fsl.TaskShape | None = None, frozen: bool = False
    ) -> tuple[fsl.Learner, fsl.TaskShape, fsl.Episode]:
        """A learner, its task and an episode. task: None for that of `tiny_task`."""
        task = task or tiny_task(case[0])
        return self._learner(case, task, frozen=frozen), task, tiny_episodes(task, 1).unbatch()[0]


_REMEDY = (
    "No state that tasks share, modules that copy.deepcopy can copy; "
    "or the adapter claims threadable = False"
)
_VMAP_REMEDY = (
    "Index by fsl.one_hot(y, n_way) and a product instead of a mask, read no value (.item(), "
    "if tensor), patch no module; affine BatchNorm and LayerNorm are wrong under vmap: use "
    "fsl.Norm; or the adapter claims vectorizable = False"
)
_COMPILED_REMEDY = (
    "Plain torch operations, with no branch on values or on the compiler; or vectorizable = False"
)

_UNEQUAL = (
    "Items of a class by its labels, such as fsl.one_hot(y, n_way), and no reshape by n_shot; or "
    "unequal_shots = False"
)
SHOTS = (3, 1, 2)
"""Of the classes of a tiny task, where they differ: six in all, as if each had two."""

_HOLDERS = (
    "__closure__",
    "cell_contents",
    "__defaults__",
    "__kwdefaults__",
    "__self__",
    "__dict__",
)
_OF_PARTIAL = ("func", "args", "keywords")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shapes(learner: fsl.Learner) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in learner.state_dict().items()}


def _unequal(task: fsl.TaskShape) -> fsl.TaskShape:
    return replace(task, varies=fsl.Varies(class_shots=True))


def _modes_of_still(learner: fsl.Learner) -> Iterable[str]:
    """The modes in which a learner of `_still` draws no random numbers."""
    return checks.modes(learner) if learner.training else ("evaluation",)


def _predict(learner: fsl.Learner, episode: fsl.Episode) -> Tensor:
    return checks.seeded(lambda: learner.adapt(episode)(episode.query.x))


def _check_prediction(
    where: str,
    prediction: Tensor,
    task: fsl.TaskShape,
    count: int,
    dtype: torch.dtype = torch.float64,
) -> None:
    expected = (count, task.output_dim)
    wrong = soundness.wrong_output("prediction", prediction, expected, dtype)
    assert not wrong, f"{where}: {wrong}"


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


def _meta_gradient(
    learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode
) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    loss = checks.seeded(learner.objective, episode, task.loss)[0]
    assert loss.requires_grad, (
        "meta-gradient: the objective depends on no parameter. Nothing detached and no "
        "torch.no_grad() on the way to the loss"
    )
    return checks.gradients_by_name(loss, trained)


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

"""What an adapter gives for other shapes of episodes, and by other executions than the loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fsl_core as fsl
from fsl_core.engine import soundness
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.testing import checks
from fsl_core.testing.adapter_setting import (
    AdapterSetting,
    Case,
    Kind,
    check_prediction,
    meta_gradient,
    predict,
)
from fsl_core.testing.tiny import (
    as_batch,
    double_precision,
    tiny_episodes,
    tiny_task,
    unequal_episodes,
)
from fsl_core.text import first_line

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


class AdapterExecutions(AdapterSetting):
    """The properties of the contract that are about shapes, executions, precision and devices."""

    def test_other_numbers_of_items(self, kind: Kind) -> None:
        for n_shot, n_query in ((1, 3), (4, 1)):
            wanted = tiny_task(kind, n_shot=n_shot, n_query=n_query)
            learner, task, episode = self._setting((kind, "none"), wanted)
            found, where = predict(learner, episode), f"{n_shot} shot, {n_query} queries"
            check_prediction(where, found, task, len(episode.query.x))
            predictor = checks.seeded(learner.adapt, episode)
            for x in (episode.query.x[:1], torch.cat([episode.query.x] * 3)):
                where = f"{n_shot} shot, {len(x)} queries at once"
                check_prediction(where, checks.seeded(predictor, x), task, len(x))

    def test_other_ways_and_shots(self, kind: Kind) -> None:
        learner, task, episode = self._setting((kind, "none"))
        expected = predict(learner, episode)
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
                prediction = predict(twin, another)
            except Exception as error:
                raise AssertionError(
                    f"{where}: {error}. Sizes from the TaskShape that the constructor gets"
                ) from error
            check_prediction(where, prediction, other, len(another.query.x))
            found = predict(learner, episode)
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
            expected = predict(learner, episode)
        except Exception as error:
            raise AssertionError(
                f"unequal shots: {SHOTS} items of the classes: {first_line(error)}. {_UNEQUAL}"
            ) from error
        check_prediction("unequal shots", expected, task, len(episode.query.x))
        # Item 2 now belongs to class 1, so the classes have as many items each.
        moved = fsl.LabelledSet(episode.support.x, torch.arange(task.n_way).repeat_interleave(2))
        assert not checks.close(predict(learner, episode._replace(support=moved)), expected), (
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
        expected, random = predict(learner, episode), self._draws(learner, task, episode)
        single = checks.cast(episode, torch.float32)
        with double_precision(torch.float32):
            learner.float()
            try:
                found = predict(learner, single)
                gradients = meta_gradient(learner, task, single)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise AssertionError(
                    f"float32: {reason}. The dtype of the features for new tensors"
                ) from error
            check_prediction("float32", found, task, len(episode.query.x), torch.float32)
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
        expected, random = predict(learner, episode), self._draws(learner, task, episode)
        learner, _, _ = self._setting((kind, "none"))  # afresh: it may keep what it has seen
        with checks.on_device(device):
            elsewhere = checks.cast(episode, device)
            learner.to(device)
            found = predict(learner, elsewhere)
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


def _shapes(learner: fsl.Learner) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in learner.state_dict().items()}


def _unequal(task: fsl.TaskShape) -> fsl.TaskShape:
    return replace(task, varies=fsl.Varies(class_shots=True))

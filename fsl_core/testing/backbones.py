"""What every backbone has to keep, whatever its layers."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn

import fsl_core as fsl
from fsl_core.data.seeding import set_seed
from fsl_core.engine import soundness
from fsl_core.engine.execution import Execution
from fsl_core.engine.workers import draws_random_numbers
from fsl_core.nn.norms import ITEM_BY_ITEM, support_reference
from fsl_core.testing import checks
from fsl_core.testing.tiny import GradientSteps, double_precision, tiny_episodes, tiny_task
from fsl_core.text import first_line

ITEMS, INNER_STEPS = 6, 1


class BackboneContract(checks.Contract):
    """Inherit as `class TestMine(BackboneContract)` and write `make`.

    input_shape: of an item; small ones make quick checks.
    items_together: the features of an item depend on the other items of the call. None: as its
        attribute `norm` says, the policy of fsl.NormedBackbone, which results name; a backbone
        without one maps each item by itself.

    Parameters are moved off zeros before each check. The gradient is compared with central
    differences. So is that of two inner gradient steps, as MAML takes them: a backbone without
    exact second derivatives shows here.
    """

    foundations: ClassVar[tuple[str, ...]] = (
        "claims",
        "features_have_their_shape",
        "forward_changes_nothing",
    )
    further: ClassVar[dict[str, tuple[str, ...]]] = {
        "second_derivatives": ("gradient_reaches_every_parameter",),
        "compiled_equals_the_loop": ("every_execution_equals_the_loop",),
    }
    only: ClassVar[dict[str, tuple[str, ...]]] = {
        "gradient_reaches_every_parameter": foundations[:2]
    }
    input_shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    items_together: ClassVar[bool | None] = None

    def make(self, *declared: Any) -> nn.Module:
        """A fresh backbone. Declare `task` and receive a TaskShape; its `input_shape` matters."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) or "
            "make(self, task) -> Module"
        )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks.parametrize(metafunc, {})

    def test_claims(self) -> None:
        backbone = self._backbone()
        size = getattr(backbone, "feature_dim", None)
        assert isinstance(size, int), (
            f"feature_dim: {size!r}. An attribute, the length of an item's feature vector, for "
            "heads"
        )

    def test_features_have_their_shape(self) -> None:
        backbone = self._backbone()
        for mode in checks.modes(backbone):
            for count in (2, ITEMS):
                where = f"{count} items, {mode}"
                try:
                    features = self._features(backbone, self._x(count))
                except (TypeError, AttributeError, RuntimeError) as error:
                    found = f"{type(error).__name__}: {first_line(error)}"
                    raise AssertionError(
                        f"{where}: raised {found}. A map of items of shape {self.input_shape}"
                    ) from error
                self._check(features, backbone, where, count)

    def test_forward_changes_nothing(self) -> None:
        backbone, x = self._backbone(), self._x()
        for mode in checks.modes(backbone):
            before = soundness.snapshot(backbone, "the backbone")
            first = self._features(backbone, x)
            after = soundness.snapshot(backbone, "the backbone")
            remedy = (
                "A task changes nothing: fsl.Norm has running statistics that the outer loop moves"
            )
            checks.assert_unchanged(before, after, f"forward, {mode}", remedy)
            again = self._features(backbone, x)
            assert checks.close(again, first), (
                f"forward, {mode}: the same items and seed gave other features the second time, "
                f"{soundness.apart(again, first)}. "
                "No state from one call to the next; random numbers from torch's global generator"
            )

    def test_items_are_independent(self) -> None:
        backbone, x = self._backbone(), self._x()
        others = torch.cat([x[:2], 1 - 2 * x[2:]])
        norm = getattr(backbone, "norm", None)
        claimed = self.items_together
        if claimed is None:
            # Under `ordinary` they depend on each other in training alone.
            claimed = norm == "ordinary" or (isinstance(norm, str) and norm not in ITEM_BY_ITEM)
        said = f"norm: {norm!r}" if self.items_together is None else f"items_together = {claimed}"
        together = False
        for mode in checks.modes(backbone):
            expected, found = self._features(backbone, x)[:2], self._features(backbone, others)[:2]
            together |= not checks.close(found, expected)
            assert claimed or checks.close(found, expected), (
                f"items, {mode}: the features of one depend on the others, "
                f"{soundness.apart(found, expected)}, and {said}. "
                "Statistics of the item alone, or an attribute `norm` that names the policy, "
                "or items_together = True as a claim"
            )
        assert together or not claimed, (
            f"items: {said}, and no feature depends on the other items. Drop it"
        )

    def test_features_depend_on_the_items(self) -> None:
        backbone, x = self._backbone(), self._x()
        features = self._features(backbone, x)
        assert not checks.close(features[:1].expand_as(features), features), (
            "items: all have the same features. A map whose last non-linearity lets something "
            "through"
        )

    def test_gradient_reaches_every_parameter(self) -> None:
        backbone = self._backbone()
        trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        if not trained:
            pytest.skip("it has no parameters")
        value = self._value(backbone)
        assert value.requires_grad, (
            "gradient: the features depend on no parameter. Nothing detached, no torch.no_grad()"
        )
        gradients = checks.gradients_by_name(value, trained)
        # Such a norm takes off the mean, and a bias with it.
        centred = getattr(backbone, "norm", "none") in ("transductive", "support", "ordinary")
        cancelled = "*bias" if centred else ""
        unreached = sorted(
            name for name in checks.without_any(gradients) if not fnmatchcase(name, cancelled)
        )
        assert not unreached, (
            f"gradient: none for {', '.join(unreached)}. A part in the features, or no such "
            "parameter"
        )
        wrong = checks.wrong_slopes(lambda: self._value(backbone).item(), backbone, gradients)
        assert not wrong, (
            "gradient: not the slope of the features, along one direction a parameter: "
            f"{'; '.join(wrong)}. Nothing detached; the backward pass of a custom function checked "
            "by torch.autograd.gradcheck"
        )

    def test_second_derivatives(self) -> None:
        learner, task = self._learner()
        (episode,) = tiny_episodes(task, 1).unbatch()
        trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}

        def objective() -> Tensor:
            return checks.seeded(learner.objective, episode, task.loss)[0]

        try:
            found = checks.gradients_by_name(objective(), trained)
        except RuntimeError as error:
            raise AssertionError(
                f"second derivatives: refused: {str(error).splitlines()[0]}. Operations that are "
                "twice differentiable: gradient steps through them are what MAML takes"
            ) from error
        wrong = checks.wrong_slopes(lambda: objective().item(), learner, found)
        assert not wrong, (
            f"second derivatives: the meta-gradient of {INNER_STEPS} gradient steps is not the "
            f"slope: {'; '.join(wrong)}. Twice differentiable operations, in place of "
            "once_differentiable ones"
        )

    def test_every_execution_equals_the_loop(self) -> None:
        learner, task = self._learner()
        episodes = tiny_episodes(task, 3)
        with checks.alike_in_every_execution(learner, task.loss, episodes):
            remedies = dict.fromkeys(checks.executions(learner.adapter), _REMEDY)
            checks.assert_equals_the_loop(learner, task.loss, episodes, remedies)

    def test_compiled_equals_the_loop(self, compiled: bool) -> None:
        learner, task = self._deterministic()
        remedies = {Execution("compiled"): _REMEDY}
        checks.assert_equals_the_loop(learner, task.loss, tiny_episodes(task, 3), remedies)

    def test_checkpoint_is_the_whole_state(self) -> None:
        first, second = self._backbone(), self._backbone(seed=1)
        checks.through_a_checkpoint(first, second, "backbone")
        expected, found = self._features(first, self._x()), self._features(second, self._x())
        assert checks.close(found, expected), (
            f"checkpoint: a fresh backbone that loads it has other features, "
            f"{soundness.apart(found, expected)}. Every tensor that matters as a parameter or a "
            "buffer (register_buffer), or the same at every construction"
        )

    def test_single_precision(self) -> None:
        backbone, x = self._backbone().eval(), self._x()
        expected = self._features(backbone, x)
        with double_precision(torch.float32):
            try:
                found = self._features(backbone.float(), x.float())
            except RuntimeError as error:
                raise AssertionError(
                    f"float32: {str(error).splitlines()[0]}. The dtype of the items for new tensors"
                ) from error
        self._check(found, backbone, "float32", ITEMS, torch.float32)
        assert checks.close(found.double(), expected, 1e-3), (
            f"float32: features other than in float64, "
            f"{soundness.apart(found.double(), expected)}. Steps that lose fewer digits"
        )

    def test_device(self, device: str) -> None:
        backbone, x = self._backbone().eval(), self._x()
        expected = self._features(backbone, x)
        with checks.on_device(device):
            found = self._features(backbone.to(device), x.to(device))
        assert found.device.type == device, (
            f"device {device}: features on {found.device}. The device of the items"
        )
        assert found.shape == expected.shape, (
            f"device {device}: shape {tuple(found.shape)}. Expected {tuple(expected.shape)}"
        )
        assert checks.close(found.cpu(), expected, 1e-6), (
            f"device {device}: features other than on the CPU, "
            f"{soundness.apart(found.cpu(), expected)}. The same computation"
        )

    def _task(self) -> fsl.TaskShape:
        return tiny_task(input_shape=self.input_shape)

    def _x(self, count: int = ITEMS) -> Tensor:
        return tiny_episodes(self._task(), 1).support.x[0, :count]

    def _backbone(self, seed: int = 0) -> nn.Module:
        set_seed(seed)
        declared = inspect.signature(self.make).parameters
        given = {"task": self._task()} if "task" in declared else {}
        backbone = checks.made(lambda: self.make(**given), nn.Module)
        checks.leave_zeros(backbone)
        return backbone.train()

    def _features(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """As a learner calls it: norm policy `support` knows a support set."""
        with support_reference(tiny_episodes(self._task(), 1, seed=9).support.x[0].to(x)):
            return checks.seeded(backbone, x)

    def _value(self, backbone: nn.Module) -> Tensor:
        """A number that all features enter, with slopes of their own."""
        features = self._features(backbone, self._x())
        normal = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
        return (features * (normal / features.shape[1] ** 0.5)).sum()

    def _learner(self) -> tuple[fsl.Learner, fsl.TaskShape]:
        task, backbone = self._task(), self._backbone()
        return fsl.Learner(backbone, GradientSteps(task, backbone, INNER_STEPS)), task

    def _deterministic(self) -> tuple[fsl.Learner, fsl.TaskShape]:
        learner, task = self._learner()
        (episode,) = tiny_episodes(task, 1).unbatch()
        if draws_random_numbers(lambda: learner.objective(episode, task.loss)):
            pytest.skip(checks.DRAWS)
        return learner, task

    def _check(
        self,
        features: Tensor,
        backbone: nn.Module,
        where: str,
        count: int,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        expected = (count, cast("int", backbone.feature_dim))  # the property `claims` has seen it
        wrong = soundness.wrong_output("features", features, expected, dtype)
        assert not wrong, f"{where}: {wrong}"


_REMEDY = (
    "Affine BatchNorm, LayerNorm and InstanceNorm of torch are wrong under vmap, and so is what "
    "reads a value or keeps state: use fsl.Norm and plain operations"
)

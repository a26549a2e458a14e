"""What every task weighting has to keep, whatever it looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.seeding import set_seed
from fsl_core.testing import checks
from fsl_core.testing.checks import TOLERANCE
from fsl_core.testing.tiny import double_precision

PARAMETER_COUNT = 6  # columns of the gradient matrix
DRAWS, MEAN_TOLERANCE = 2000, 0.05
"""Weights that sum to one deviate by at most 0.5: a mean's standard error is 4.4 times smaller."""

EXTREME = {torch.float64: 1e30, torch.float32: 1e15}
"""Numbers whose squares are finite."""


class WeightingContract(checks.Contract):
    """Inherit as `class TestMine(WeightingContract)` and write `make`.

    The claims of the weighting itself, `needs` and `total`, are measured. It sees what the engine
    would give it: gradients, of 6 numbers a task, only if it needs them; no losses worth reading if
    it needs nothing; ids 0 .. 4.

    random: weights are drawn from torch's global generator. What is said of them is then checked
        for their mean over 2000 draws, to 0.05.
    """

    foundations: ClassVar[tuple[str, ...]] = ("claims", "one_finite_weight_a_task")
    random: ClassVar[bool] = False
    sizes: ClassVar[tuple[int, ...]] = (1, 2, 5)

    def make(self) -> fsl.TaskWeighting:
        """A fresh weighting."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> TaskWeighting"
        )

    def values_of(self, parameter: str) -> Sequence[Any]:
        return {"size": self.sizes}[parameter]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks.parametrize(metafunc, {"size": self.sizes})

    def test_claims(self) -> None:
        weighting = self._weighting()
        name = getattr(weighting, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under "
            "`outer.weighting.name`"
        )
        unknown = set(weighting.needs) - {"losses", "gradients"}
        assert not unknown, (
            f"needs: {sorted(unknown)}. 'losses', 'gradients', both, or an empty set"
        )
        assert weighting.total in ("one", "tasks", "any"), (
            f"total: {weighting.total!r}. 'one', 'tasks' or 'any'"
        )

    def test_one_finite_weight_a_task(self, size: int) -> None:
        self._check(self._weigh(_outcomes(size)), size, "weigh")

    def test_extreme_outcomes(self, size: int) -> None:
        for dtype, large in EXTREME.items():
            for losses in ([0.0], [1 / large], [large], [0.0, 1 / large, 1.0, large]):
                values = torch.tensor((losses * size)[:size], dtype=dtype)
                signs = _drawn(size)[1].to(dtype)
                outcomes = fsl.Outcomes(values, values[:, None] * signs, torch.arange(size))
                sizes = sorted(set(values.tolist()))
                where = f"weigh, {dtype}, losses and gradients of size {sizes}"
                self._check(self._weigh(outcomes), size, where)

    def test_equal_tasks_weigh_the_same(self, size: int) -> None:
        losses, gradients = _drawn(1)
        outcomes = fsl.Outcomes(losses.expand(size), gradients.expand(size, -1), torch.arange(size))
        weights = self._mean_weights(outcomes)
        assert self._close(weights, weights.mean().expand(size)), (
            f"weigh: tasks with equal losses and gradients weigh {weights.tolist()}. The same for "
            "each: a task's place in the meta-batch says nothing about it"
        )

    def test_order_of_tasks(self, size: int) -> None:
        outcomes, order = _outcomes(size), torch.arange(size).roll(1)
        expected = self._mean_weights(outcomes)[order]
        found = self._mean_weights(_each(outcomes, lambda tensor: tensor[order]))
        assert self._close(found, expected), (
            f"weigh: {found.tolist()} for permuted tasks, whose permuted weights are "
            f"{expected.tolist()}. Weights that follow the tasks, whatever their place in the "
            "meta-batch"
        )

    def test_needs_are_all_it_reads(self, size: int) -> None:
        weighting = self._weighting()
        outcomes, expected = _outcomes(size), self._weigh(_outcomes(size))
        if not weighting.needs:
            found = self._weigh(outcomes._replace(losses=torch.zeros(size)))
            assert _close(found, expected), (
                "needs: empty, and the weights change with the losses. {'losses'}"
            )
        elif "losses" not in weighting.needs:
            found = self._weigh(outcomes._replace(losses=outcomes.losses.flip(0) + 1))
            assert _close(found, expected), (
                "needs: {'gradients'}, and the weights change with the losses. "
                "{'losses', 'gradients'}"
            )

    def test_randomness_is_torchs(self, size: int) -> None:
        first, again = self._weigh(_outcomes(size)), self._weigh(_outcomes(size))
        assert torch.equal(first, again), (
            f"weigh: {first.tolist()}, then {again.tolist()} under the same torch.manual_seed. "
            "Randomness from torch's global generator alone, which the outer loop seeds before "
            "each step"
        )

    def test_randomness_is_claimed(self) -> None:
        draws = [self._weigh(_outcomes(5), seed) for seed in range(20)]
        varies = not all(torch.equal(weights, draws[0]) for weights in draws)
        assert varies or not self.random, (
            "random: True, and 20 seeds give the same weights. Drop the claim"
        )
        assert self.random or not varies, (
            "random: False, and weights differ between seeds. random = True on the test class"
        )

    def test_outcomes_are_only_read(self, size: int) -> None:
        outcomes, before = _outcomes(size), _outcomes(size)
        self._weigh(outcomes)
        for what in fsl.Outcomes._fields:
            same = torch.equal(getattr(outcomes, what), getattr(before, what))
            assert same, (
                f"weigh: it changed outcomes.{what} in place. A new tensor: the engine goes on to "
                "use this one"
            )

    def test_gradient_reaches_every_parameter(self) -> None:
        weighting = self._weighting()
        trained = {name: p for name, p in weighting.named_parameters() if p.requires_grad}
        if not trained:
            pytest.skip("it has no parameters")
        outcomes = self._given(weighting, _outcomes(5))
        weights = weighting.weigh(outcomes)
        assert weights.requires_grad, (
            f"weigh: no graph from {', '.join(trained)} to the weights. Nothing detached, no "
            "no_grad"
        )
        objective = weighting.objective(weights, outcomes)
        assert objective.shape == (), f"objective: shape {tuple(objective.shape)}. A scalar"
        gradients = checks.gradients_by_name(objective, trained)
        unreached = checks.without_any(gradients)
        for name, gradient in gradients.items():
            assert name not in unreached, (
                f"weigh: {name} gets no gradient. A part in the weights, or no such parameter"
            )
            assert gradient is None or gradient.isfinite().all(), (
                f"weigh: the gradient of {name} is not finite. Safe divisions and logarithms"
            )

    def test_checkpoint_is_the_whole_state(self) -> None:
        first, second = self._weighting(), self._weighting(seed=1)
        given = self._given(first, _outcomes(5))
        first.weigh(given)  # a weighting may keep running averages
        checks.through_a_checkpoint(first, second, "weighting")
        expected, found = self._seeded(first, given), self._seeded(second, given)
        assert _close(found, expected), (
            f"checkpoint: a fresh weighting that loads it gives {found.tolist()}, the saved one "
            f"{expected.tolist()}. Every tensor that matters as a parameter or a buffer: a resumed "
            "run must go on as if never stopped"
        )

    def test_single_precision(self) -> None:
        expected = self._weigh(_outcomes(5))
        with double_precision(torch.float32):
            weighting = self._weighting()
            given = _each(
                _outcomes(5, torch.float64), lambda t: t.float() if t.is_floating_point() else t
            )
            try:
                found = self._seeded(weighting, self._given(weighting, given))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise AssertionError(
                    f"float32: {reason}. The dtype of the losses for new tensors"
                ) from error
            assert found.dtype == torch.float32, (
                f"float32: weights of {found.dtype} for torch.float32 losses. Their dtype"
            )
            self._check(found, 5, "float32")
        assert self.random or _close(found.double(), expected, 1e-4), (
            f"float32: weights {found.tolist()} where float64 gives {expected.tolist()}. Steps "
            "that lose fewer digits"
        )

    def test_device(self, device: str) -> None:
        weighting = self._weighting()
        expected = self._weigh(_outcomes(5))
        with checks.on_device(device):
            there = _each(_outcomes(5), lambda tensor: tensor.to(device))
            given = self._given(weighting, there)
            found = self._seeded(weighting.to(device), given)
        assert found.device.type == device, (
            f"device {device}: weights on {found.device}. The device of the losses"
        )
        assert found.shape == (5,), (
            f"device {device}: weights of shape {tuple(found.shape)}. Expected (5,)"
        )
        assert self.random or _close(found.cpu(), expected, 1e-6), (
            f"device {device}: weights {found.tolist()} where the CPU gives {expected.tolist()}. "
            "The same computation"
        )

    def _weighting(self, seed: int = 0) -> fsl.TaskWeighting:
        set_seed(seed)
        return checks.made(self.make, fsl.TaskWeighting)

    def _weigh(self, outcomes: fsl.Outcomes, seed: int = 2) -> Tensor:
        weighting = self._weighting()
        return self._seeded(weighting, self._given(weighting, outcomes), seed)

    def _mean_weights(self, outcomes: fsl.Outcomes) -> Tensor:
        if not self.random:
            return self._weigh(outcomes)
        weighting = self._weighting()
        given = self._given(weighting, outcomes)
        return torch.stack([weighting.weigh(given) for _ in range(DRAWS)]).mean(0).detach()

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        tolerance = MEAN_TOLERANCE * float(expected.sum()) if self.random else TOLERANCE
        return _close(found, expected, tolerance)

    @staticmethod
    def _seeded(weighting: fsl.TaskWeighting, given: fsl.Outcomes, seed: int = 2) -> Tensor:
        set_seed(seed)
        return weighting.weigh(given).detach()

    @staticmethod
    def _given(weighting: fsl.TaskWeighting, outcomes: fsl.Outcomes) -> fsl.Outcomes:
        return outcomes if "gradients" in weighting.needs else outcomes._replace(gradients=None)

    def _check(self, weights: Tensor, size: int, where: str) -> None:
        assert weights.shape == (size,), (
            f"{where}: weights of shape {tuple(weights.shape)}. Expected ({size},), one a task"
        )
        assert weights.isfinite().all(), (
            f"{where}: weights {weights.tolist()}. Finite ones: a softmax instead of a quotient of "
            "exponentials, no division by a norm or sum that can be zero"
        )
        assert (weights >= 0).all(), (
            f"{where}: weights {weights.tolist()}. None below zero: it would unlearn a task"
        )
        claimed = self._weighting().total
        if claimed == "any":
            assert weights.sum() > 0, (
                f"{where}: weights that are all zero. One above it, or the learner stands still"
            )
            return
        total = 1 if claimed == "one" else size
        tolerance = TOLERANCE if weights.dtype == torch.float64 else 1e-5
        assert abs(weights.sum().item() - total) <= tolerance * total, (
            f"{where}: weights that sum to {weights.sum().item():.9g}. {total}, or another claim: "
            "`total` is 'one', 'tasks' or 'any'"
        )


def _outcomes(size: int, dtype: torch.dtype | None = None) -> fsl.Outcomes:
    """Losses and gradients of the tasks 0 .. size - 1."""
    return fsl.Outcomes(*_drawn(size, dtype), torch.arange(size))


def _drawn(size: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Losses in 0 .. 2, and gradients that mostly, not always, agree in direction."""
    generator = torch.Generator().manual_seed(size)
    losses = 2 * torch.rand(size, generator=generator, dtype=dtype)
    gradients = 0.5 + torch.randn(size, PARAMETER_COUNT, generator=generator, dtype=dtype)
    return losses, gradients


def _each(outcomes: fsl.Outcomes, function: Callable[[Tensor], Tensor]) -> fsl.Outcomes:
    """Outcomes with a function applied to every tensor."""
    losses, *others = outcomes
    gradients, ids = (None if tensor is None else function(tensor) for tensor in others)
    return fsl.Outcomes(function(losses), gradients, ids)


def _close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return bool((found - expected).abs().max() <= tolerance)

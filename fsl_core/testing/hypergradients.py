"""What every hypergradient has to keep, however it estimates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.seeding import set_seed
from fsl_core.engine import soundness
from fsl_core.engine.execution import Execution
from fsl_core.testing import checks
from fsl_core.testing.inner_problems import SHAPES, RidgeSteps
from fsl_core.testing.tiny import double_precision, tiny_episodes, tiny_task
from fsl_core.testing.trials import (
    CASES,
    TASKS,
    Case,
    HypergradientTrials,
    distance,
    gradients_of,
    inner_product,
    random_states,
    state,
)
from fsl_core.text import first_line

CONVERGED = 150
"""Inner steps after which `RidgeSteps` stands at its minimum, to 1e-14."""

_REMEDY = (
    "No value read (.item(), if tensor), nothing kept that another thread or task overwrites; or "
    "vectorizable = False, threadable = False"
)


class HypergradientContract(HypergradientTrials):
    """Inherit as `class TestMine(HypergradientContract)` and write `make`.

    State the claims that differ from the defaults:

    exact: whether the gradient is the exact one of the query loss by the meta-parameters: "always";
        "at the minimum" of the inner loss, which the inner steps have then reached; or "no". What
        is not exact still points the same way: over 8 tasks its product with the exact one is
        positive.
    tolerance: of the norm of the exact gradient, for estimates that round.
    own_value: the value is not the query loss after the adapter's own inner steps, because steps of
        its own come before it: on other data, with noise, from a memory.
    reaches_outer: the gradient reaches what an inner problem reads besides its start, such as a
        backbone where the head alone moves.
    inner_steps: of the adapters that it is tried with.

    The claims of the hypergradient itself, `vectorizable` and `threadable`, are measured too. It is
    tried with `gradient-steps`, MAML of a small network, and `ridge-steps`, whose inner loss is
    strongly convex (`RidgeSteps`, attribute `proximal`), if `unfit` does not refuse one; and with
    inner problems of other shapes, each of which it must refuse or get right.
    """

    foundations: ClassVar[tuple[str, ...]] = (
        "claims",
        "value_is_the_query_loss",
        "objective_changes_nothing",
    )
    further: ClassVar[dict[str, tuple[str, ...]]] = {
        "other_inner_problems": ("gradient_is_as_exact_as_claimed",),
        "compiled_equals_the_loop": ("every_execution_equals_the_loop",),
    }
    exact: ClassVar[Literal["always", "at the minimum", "no"]] = "always"
    tolerance: ClassVar[float] = 1e-6
    own_value: ClassVar[bool] = False
    reaches_outer: ClassVar[bool] = True

    def values_of(self, parameter: str) -> Sequence[Any]:
        return {"case": CASES, "shape": list(SHAPES)}[parameter]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        checks.parametrize(metafunc, {"case": CASES, "shape": list(SHAPES)})

    def test_claims(self) -> None:
        made = self._made(tiny_task())
        name = getattr(made, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under "
            "`outer.hypergradient.name`"
        )
        trained = [name for name, _ in made.named_parameters()]
        assert not trained, (
            f"parameters: {', '.join(trained)}. Buffers: the outer loop trains the learner alone"
        )
        assert self.exact in ("always", "at the minimum", "no"), (
            f"exact: {self.exact!r}. 'always', 'at the minimum' or 'no'"
        )
        refused = [self._refusal(case) for case in CASES]
        assert not all(refused), (
            f"refusals: it takes no adapter of the kit: {'; '.join(sorted(set(refused)))}. "
            f"One that it takes: {', '.join(sorted({name for name, _ in CASES}))}"
        )

    def test_value_is_the_query_loss(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        value, prediction = checks.seeded(learner.objective, episode, task.loss)
        _check_outcome("objective", value, prediction, task, episode)
        expected = learner.adapter.objective(learner.backbone, episode, task.loss)
        same = checks.close(value, expected[0]) and checks.close(prediction, expected[1])
        assert same or self.own_value, (
            f"objective: its value is {value.item():.9g}, and the query loss after the inner steps "
            f"is {expected[0].item():.9g}. That loss, and the prediction it is computed from: "
            "fsl.with_gradient gives a value any gradient; or the claim own_value = True"
        )
        assert not (same and self.own_value), (
            "own_value: True, and the value is the query loss after the inner steps. Drop the claim"
        )

    def test_objective_changes_nothing(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        before = state(learner)
        self._gradients(learner, task, episode)
        learner.on_step(episode.id[None])
        remedy = "It works on copies: the learner belongs to the outer loop"
        checks.assert_unchanged(before, state(learner), "objective", remedy)

    def test_evaluation_is_the_adapters(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        self._train(learner, task)
        fresh = fsl.Learner(*self._adapted(case)[1:])
        fresh.load_state_dict(learner.state_dict())
        with torch.no_grad():
            found = checks.seeded(learner.eval(), episode.support, episode.query.x)
            expected = checks.seeded(fresh.eval(), episode.support, episode.query.x)
        assert checks.close(found, expected), (
            f"evaluation: the adapter predicts otherwise after training with it, "
            f"{soundness.apart(found, expected)}. An estimate that acts in training alone and "
            "leaves no mark on adapter or backbone"
        )

    def test_gradient_reaches_the_meta_parameters(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        problem = fsl.inner_problem_of(learner.adapter, learner.backbone, episode)
        started = {id(tensor) for tensor in problem.start.values()}
        parameters = dict(learner.named_parameters())
        inside = {name for name, p in parameters.items() if id(p) in started}
        gradients = self._gradients(learner, task, episode)
        for name, gradient in gradients.items():
            assert gradient.isfinite().all(), (
                f"meta-gradient: not finite for {name}. Safe square roots and divisions"
            )
        reached = {name for name, gradient in gradients.items() if gradient.count_nonzero()}
        missing = sorted(inside - reached)
        assert not missing, (
            f"meta-gradient: none for {', '.join(missing)}. The start of the inner problem is a "
            "function of them: a gradient by it, through its graph"
        )
        outside = set(gradients) - inside
        missing = sorted(outside - reached)
        assert not missing or not self.reaches_outer, (
            f"meta-gradient: none for {', '.join(missing)}. The part that goes through `outer` of "
            "the inner problem, or the claim reaches_outer = False"
        )
        assert not (outside & reached) or self.reaches_outer, (
            f"reaches_outer: False, and {', '.join(sorted(outside & reached))} gets a gradient. "
            "Drop the claim"
        )

    def test_gradient_is_as_exact_as_claimed(self, case: Case) -> None:
        totals = [self._total(case, exact) for exact in (False, True)]
        error, product = distance(*totals), inner_product(*totals)
        assert product > 0, (
            f"meta-gradient: over {TASKS} tasks its product with the exact one is {product:.2g}. "
            "Above zero: a direction in which the query loss grows"
        )
        assert error <= self.tolerance or self.exact != "always", (
            f"meta-gradient: {error:.2g} of the exact one's norm away from it. At most "
            f"{self.tolerance:.2g}, a larger tolerance, or exact = 'at the minimum' or 'no'"
        )

    def test_gradient_at_the_minimum(self) -> None:
        learner, task, episode = self._setting(("ridge-steps", "none"), CONVERGED)
        found = self._gradients(learner, task, episode)
        assert isinstance(learner.adapter, RidgeSteps)
        value = learner.adapter.at_the_minimum(learner.backbone, episode)
        error = distance(found, gradients_of(value, learner))
        assert error <= self.tolerance or self.exact == "no", (
            f"meta-gradient, {CONVERGED} steps to the minimum of a ridge regression: {error:.2g} "
            "of the exact one's norm away from that of the closed form. At most "
            f"{self.tolerance:.2g}, a larger tolerance, or exact = 'no'"
        )
        assert error > self.tolerance or self.exact != "no", (
            f"exact: 'no', and at the minimum of a ridge regression it is within {error:.2g} of "
            "the exact gradient. exact = 'at the minimum' or 'always'"
        )

    def test_other_inner_problems(self, shape: str) -> None:
        learner, task, episode = self._setting((shape, "none"))
        expected, _ = learner.adapter.objective(learner.backbone, episode, task.loss)
        value, prediction = checks.seeded(learner.objective, episode, task.loss)
        _check_outcome(shape, value, prediction, task, episode)
        assert self.own_value or checks.close(value, expected), (
            f"{shape}: the value is {value.item():.9g}, and the adapter's own objective is "
            f"{expected.item():.9g}. The same, or a reason in `unfit`, which asks super() first"
        )
        found = gradients_of(value, learner)
        assert all(gradient.isfinite().all() for gradient in found.values()), (
            f"{shape}: a meta-gradient that is not finite. A finite one, or a reason in `unfit`"
        )
        apart = distance(found, gradients_of(expected, learner))
        assert apart <= self.tolerance or self.exact != "always", (
            f"{shape}: the meta-gradient is {apart:.2g} of the exact one's norm away from it. "
            f"At most {self.tolerance:.2g}, or a reason in `unfit`"
        )

    def test_tasks_are_independent(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        expected = self._gradients(learner, task, episode)
        again, _, _ = self._setting(case)
        self._gradients(again, task, tiny_episodes(task, 2).unbatch()[1])
        error = distance(self._gradients(again, task, episode), expected)
        assert error <= checks.TOLERANCE, (
            f"meta-gradient: it is {error:.2g} of its norm away once another task was computed "
            "before it. What is kept between tasks is kept by `Episode.id`, or changes in `on_step`"
        )

    def test_random_numbers_are_its_own(self, case: Case) -> None:
        found, moved = [], False
        for seed in (1, 2):
            learner, task, episode = self._setting(case)
            set_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            before = random_states()
            found.append(gradients_of(learner.objective(episode, task.loss)[0], learner))
            learner.on_step(episode.id[None])
            moved |= before != random_states()
        error = distance(*found)
        assert error <= checks.TOLERANCE, (
            f"random numbers: the gradient moves by {error:.2g} of its norm with a global random "
            "state. Numbers from `Episode.id` and a seed among the options"
        )
        assert not moved, (
            "random numbers: a global random state moves. A generator of its own, seeded by "
            "`Episode.id` and an option"
        )

    def test_checkpoint_is_the_whole_state(self, case: Case) -> None:
        first, task, episode = self._setting(case)
        second, _, _ = self._setting(case, seed=1)
        second.load_state_dict(first.state_dict())
        self._train(first, task)
        one, other = first.hypergradient, second.hypergradient
        assert one is not None
        assert other is not None
        checks.through_a_checkpoint(one, other, "hypergradient")
        for learner in (first, second):
            learner.on_progress(0.5)
        expected = self._gradients(first, task, episode)
        error = distance(self._gradients(second, task, episode), expected)
        assert error <= checks.TOLERANCE, (
            f"checkpoint: a fresh hypergradient that loads it gives a meta-gradient {error:.2g} of "
            "its norm away. Every tensor that matters in a buffer (register_buffer), or the same "
            "at every construction"
        )

    def test_every_execution_equals_the_loop(self, case: Case) -> None:
        learner, _, _ = self._setting(case)
        allowed = checks.executions(learner)
        if not allowed:
            pytest.skip("not claimed: vectorizable = False, threadable = False")
        self._assert_equal_the_loop(case, allowed)
        self._assert_equal_the_loop(case, allowed[-1:], frozenset({"gradients"}))

    def test_compiled_equals_the_loop(self, compiled: bool) -> None:
        taken = [case for case in CASES if not self._refusal(case)]
        case = taken[-1]  # the least to compile
        if not self._setting(case)[0].vectorizable:
            pytest.skip("not claimed: vectorizable = False")
        self._assert_equal_the_loop(case, [Execution("compiled")], batches=1)

    def test_single_precision(self, case: Case) -> None:
        learner, task, episode = self._setting(case)
        expected, _ = learner.objective(episode, task.loss)
        with double_precision(torch.float32):
            single, _, _ = self._setting(case)
            single.load_state_dict(learner.state_dict())
            episode = checks.cast(episode, torch.float32)
            try:
                value, prediction = single.objective(episode, task.loss)
            except RuntimeError as error:
                raise AssertionError(
                    f"float32: {first_line(error)}. The dtype of the fast weights for new tensors"
                ) from error
            _check_outcome("float32", value, prediction, task, episode)
            gradients = gradients_of(value, single)
        assert all(gradient.isfinite().all() for gradient in gradients.values()), (
            "float32: a meta-gradient that is not finite. A larger epsilon: float32 rounds at 1e-7"
        )
        assert self.own_value or checks.close(value.double(), expected, checks.SINGLE_TOLERANCE), (
            f"float32: value {value.item():.6g} where float64 gives {expected.item():.6g}. The "
            "same computation"
        )

    def test_device(self, case: Case, device: str) -> None:
        learner, task, episode = self._setting(case)
        expected, _ = learner.objective(episode, task.loss)
        learner, _, _ = self._setting(case)
        assert learner.hypergradient is not None
        with checks.on_device(device):
            there = checks.cast(episode, device)
            learner.to(device)
            learner.hypergradient.to(device)
            value, _ = learner.objective(there, task.loss)
            gradients = gradients_of(value, learner)
        places = {value.device.type} | {gradient.device.type for gradient in gradients.values()}
        assert places == {device}, (
            f"device {device}: value and gradients on {', '.join(sorted(places))}. The device of "
            "the episode"
        )
        assert checks.close(value.cpu(), expected, 1e-6), (
            f"device {device}: value {value.item():.9g} where the CPU gives {expected.item():.9g}. "
            "The same computation"
        )

    def _assert_equal_the_loop(
        self,
        case: Case,
        executions: Sequence[Execution],
        needs: frozenset[str] = frozenset(),
        batches: int = 2,
    ) -> None:
        expected = self._computed(case, Execution(), needs, batches)
        for execution in executions:
            try:
                found = self._computed(case, execution, needs, batches)
            except Exception as error:
                told = f"{execution}: refused: {first_line(error)}. {_REMEDY}"
                raise AssertionError(told) from error
            for step, (one, other) in enumerate(zip(found, expected, strict=True)):
                wrong = checks.differences(one, other)
                assert not wrong, (
                    f"{execution}, outer step {step}: not what the loop computes; "
                    f"{'; '.join(wrong)}. {_REMEDY}"
                )


def _check_outcome(
    where: str, value: Tensor, prediction: Tensor, task: fsl.TaskShape, episode: fsl.Episode
) -> None:
    wrong = soundness.wrong_loss(value)
    assert not wrong, f"{where}: {wrong}"
    assert value.requires_grad, (
        f"{where}: the value has no graph. Nothing detached but what fsl.with_gradient is given"
    )
    shape, dtype = (len(episode.query.x), task.output_dim), episode.query.x.dtype
    wrong = soundness.wrong_output("prediction", prediction, shape, dtype)
    assert not wrong, f"{where}: {wrong}"

"""A hypergradient with the adapters and episodes that its contract tries it on."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
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
from fsl_core.testing.tiny import GradientSteps, TinyBackbone, tiny_episodes, tiny_task
from fsl_core.text import first_line

Case = tuple[Literal["gradient-steps", "ridge-steps"], fsl.NormPolicy]
"""Inner problem, and normalisation of the backbone."""

CASES: tuple[Case, ...] = (
    ("gradient-steps", "none"),
    ("gradient-steps", "transductive"),
    ("ridge-steps", "none"),
)
TASKS = 8
"""Training tasks that there are."""

META_BATCH = 3
"""Tasks of each outer step."""

Gradients = dict[str, Tensor]


_PROBLEMS = {"gradient-steps": GradientSteps, "ridge-steps": RidgeSteps}


class HypergradientTrials(checks.Contract):
    """What the properties of a hypergradient are measured with."""

    inner_steps: ClassVar[int] = 2
    _refusals: ClassVar[dict[Any, str]]  # of each class its own, once it has been asked

    def make(self, *offered: Any) -> fsl.Hypergradient:
        """A fresh hypergradient.

        Declare `task`, `tasks` or `meta_batch_size`, and receive them by name.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> Hypergradient"
        )

    def _made(self, task: fsl.TaskShape) -> fsl.Hypergradient:
        injected = {"task": task, "tasks": TASKS, "meta_batch_size": META_BATCH}
        declared = inspect.signature(self.make).parameters
        given = {name: value for name, value in injected.items() if name in declared}
        return checks.made(lambda: self.make(**given), fsl.Hypergradient)

    def _adapted(
        self, case: tuple[str, fsl.NormPolicy], inner_steps: int | None = None, seed: int = 0
    ) -> tuple[fsl.Hypergradient, torch.nn.Module, fsl.Adapter]:
        """A hypergradient, and the backbone and adapter that it is tried with."""
        name, norm = case
        set_seed(seed)
        backbone, makers = TinyBackbone(norm), SHAPES | _PROBLEMS
        steps = self.inner_steps if inner_steps is None else inner_steps
        adapter = makers[name](task_of(case), backbone, inner_steps=steps)
        return self._made(task_of(case)), backbone, adapter

    def _setting(
        self, case: tuple[str, fsl.NormPolicy], inner_steps: int | None = None, seed: int = 0
    ) -> tuple[fsl.Learner, fsl.TaskShape, fsl.Episode]:
        """A learner with the hypergradient, its task and an episode; skips a pair it refuses."""
        if refused := self._refusal(case, inner_steps):
            pytest.skip(f"not claimed: {refused}")
        made, backbone, adapter = self._adapted(case, inner_steps, seed)
        learner, task = fsl.Learner(backbone, adapter, made), task_of(case)
        checks.leave_zeros(learner)
        return learner.train(), task, tiny_episodes(task, 1).unbatch()[0]

    def _refusal(self, case: tuple[str, fsl.NormPolicy], inner_steps: int | None = None) -> str:
        """Why it does not take an adapter: `unfit`, or an FslError of `objective`; asked once."""
        own = vars(type(self))
        if "_refusals" not in own:
            type(self)._refusals = {}
        asked = (case, inner_steps, torch.get_default_dtype())
        if asked not in self._refusals:
            self._refusals[asked] = self._ask(case, inner_steps)
        return self._refusals[asked]

    def _ask(self, case: tuple[str, fsl.NormPolicy], inner_steps: int | None) -> str:
        made, backbone, adapter = self._adapted(case, inner_steps)
        said = made.unfit(adapter)
        assert isinstance(said, str), (
            f"unfit: a {type(said).__name__}. The reason as text, or '' if there is none"
        )
        if not said:
            task = task_of(case)
            (episode,) = tiny_episodes(task, 1).unbatch()
            try:
                fsl.Learner(backbone, adapter, made).train().objective(episode, task.loss)
            except fsl.FslError as error:
                said = str(error)
            except Exception as error:
                raise AssertionError(
                    f"{adapter.name}: raised {type(error).__name__}: {first_line(error)}. A reason "
                    "in `unfit`, or an objective that can do it"
                ) from error
        assert said == " ".join(said.split()), f"refusal: {said!r}. One line"
        return said

    def _gradients(
        self, learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode
    ) -> Gradients:
        return gradients_of(checks.seeded(learner.objective, episode, task.loss)[0], learner)

    def _total(self, case: Case, exact: bool) -> Gradients:
        """The gradient summed over all tasks; exact: of the adapter's own objective."""
        learner, task, _ = self._setting(case)
        if exact:
            learner = fsl.Learner(learner.backbone, learner.adapter)
        found = [self._gradients(learner, task, e) for e in tiny_episodes(task, TASKS).unbatch()]
        return {name: sum(g[name] for g in found) for name in found[0]}  # type: ignore[misc]

    def _train(self, learner: fsl.Learner, task: fsl.TaskShape) -> None:
        """Two outer steps, but for the step itself."""
        for progress, batch in zip((0.0, 0.5), meta_batches(task), strict=True):
            learner.on_progress(progress)
            for episode in batch.unbatch():
                self._gradients(learner, task, episode)
            learner.on_step(batch.id)

    def _computed(
        self, case: Case, execution: Execution, needs: frozenset[str], batches: int
    ) -> list[dict[str, Tensor]]:
        """What an execution makes of one or two meta-batches, one after the other."""
        learner, task, _ = self._setting(case)
        found: list[dict[str, Tensor]] = []
        for batch in list(meta_batches(task))[:batches]:
            learner.on_progress(len(found) / 2)
            found.append(checks.meta_batch(learner, task.loss, execution, batch, needs))
            learner.on_step(batch.id)
        return found


def task_of(case: tuple[str, str]) -> fsl.TaskShape:
    return tiny_task("regression" if case[0] == "ridge-steps" else "classification")


def meta_batches(task: fsl.TaskShape) -> Iterator[fsl.Episode]:
    """Two meta-batches that share one of their tasks."""
    episodes = tiny_episodes(task, 2 * META_BATCH - 1).unbatch()
    for some in (episodes[:META_BATCH], episodes[-META_BATCH:]):
        yield torch.utils.data.default_collate(list(some))


def gradients_of(value: Tensor, learner: fsl.Learner) -> Gradients:
    """The gradient of a value by each trained parameter; zeros where it does not depend on it."""
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    found = checks.gradients_by_name(value, trained)
    return {n: torch.zeros_like(trained[n]) if g is None else g for n, g in found.items()}


def distance(found: Gradients, expected: Gradients) -> float:
    """The distance between two gradients, in units of the norm of the second."""
    apart = {name: found[name] - gradient for name, gradient in expected.items()}
    return (inner_product(apart, apart) / inner_product(expected, expected)) ** 0.5


def inner_product(one: Gradients, other: Gradients) -> float:
    return float(sum((gradient * other[name]).sum() for name, gradient in one.items()))


def state(learner: fsl.Learner) -> dict[str, Any]:
    """All of the learner that an estimate must leave alone."""
    plain = soundness.hidden(learner).items()
    return soundness.snapshot(learner, "the learner") | soundness.copied(dict(plain))


def random_states() -> tuple[bytes, bytes, object]:
    numpy_state = np.random.get_state(legacy=False)["state"]["key"]
    return torch.get_rng_state().numpy().tobytes(), numpy_state.tobytes(), random.getstate()

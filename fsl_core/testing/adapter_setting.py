"""What an adapter is tried with: a tiny learner and an episode of each kind of task."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.data.seeding import set_seed
from fsl_core.engine import soundness
from fsl_core.engine.workers import draws_random_numbers
from fsl_core.testing import checks
from fsl_core.testing.tiny import TinyBackbone, tiny_episodes, tiny_task

Kind = Literal["classification", "regression"]
Case = tuple[Kind, fsl.NormPolicy]
"""Kind of the task and normalisation of the backbone."""

KINDS: tuple[Kind, ...] = ("classification", "regression")


class AdapterSetting(checks.Contract):
    """What every property of an adapter needs. `AdapterContract` says what the claims are."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)

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


def modes_of_still(learner: fsl.Learner) -> Iterable[str]:
    """The modes in which a learner of `_still` draws no random numbers."""
    return checks.modes(learner) if learner.training else ("evaluation",)


def predict(learner: fsl.Learner, episode: fsl.Episode) -> Tensor:
    return checks.seeded(lambda: learner.adapt(episode)(episode.query.x))


def check_prediction(
    where: str,
    prediction: Tensor,
    task: fsl.TaskShape,
    count: int,
    dtype: torch.dtype = torch.float64,
) -> None:
    expected = (count, task.output_dim)
    wrong = soundness.wrong_output("prediction", prediction, expected, dtype)
    assert not wrong, f"{where}: {wrong}"


def meta_gradient(
    learner: fsl.Learner, task: fsl.TaskShape, episode: fsl.Episode
) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    loss = checks.seeded(learner.objective, episode, task.loss)[0]
    assert loss.requires_grad, (
        "meta-gradient: the objective depends on no parameter. Nothing detached and no "
        "torch.no_grad() on the way to the loss"
    )
    return checks.gradients_by_name(loss, trained)

"""What an observer is shown of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from fsl_core.episode import Episode, TaskShape
from fsl_core.learner import Learner


class Best(NamedTuple):
    """The best validation so far: after how many outer steps, and its mean score."""

    step: int
    score: float


class Observed(Protocol):
    """What a run does on behalf of its views."""

    def resolved_recipe(self) -> dict[str, Any]: ...

    def read_metrics(self) -> list[dict[str, Any]]: ...

    def kept_checkpoints(self) -> dict[str, Path]: ...

    def predict_episodes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> Iterator[tuple[Episode, Tensor]]: ...

    def episode_classes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> list[tuple[str, ...]] | None: ...


@dataclass(frozen=True, eq=False)
class RunView:
    """A run at the moment of one hook call: to be read, never to be changed.

    Each call gets a view of its own, so `step` and what follows from it stay as they were.
    The learner is the same object in all views of a run, and changes as it is trained.

    name:         of the recipe's file, without `.yaml`.
    directory:    the run's folder, None for a run that writes no files.
    seed:         of the run; evaluation episodes have another, `recipe["evaluate"]["seed"]`.
    steps:        outer steps of the whole run.    step: those done.
    resumed_from: the step that training went on from; 0 for a new run.
    best:         the best validation so far; None before the first.
    execution:    how meta-batches are computed and why; empty where nothing is trained.
    device:       where it computes, such as `cpu` or `cuda:0`.
    learner:      backbone and adapter, with the weights of now.
    task:         shape of the training episodes.    test_task: that of the evaluation episodes.
    notes:        what a user should know, such as files that were passed over.
    sweep:        the name of the sweep that it belongs to; empty if it belongs to none.
    """

    name: str
    directory: Path | None
    seed: int
    steps: int
    step: int
    resumed_from: int
    best: Best | None
    execution: str
    device: str
    learner: Learner
    task: TaskShape
    test_task: TaskShape
    notes: tuple[str, ...]
    sweep: str
    _run: Observed = field(repr=False)

    @property
    def recipe(self) -> dict[str, Any]:
        """The whole recipe as plain data, defaults included: a copy, as `recipe.yaml` has it.

        A program that trains without a recipe has given its parts as objects. Then it holds only
        `seed`, `outer`, `execution` and `evaluate`.
        """
        return self._run.resolved_recipe()

    @property
    def options(self) -> dict[str, bool | int | float | str]:
        """Every option of the recipe by its key path, such as `adapter.inner_lr`.

        Lists are texts; options that are null are left out.
        """
        return dict(_options(self.recipe))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Those of the learner's parameters that are trained."""
        named = self.learner.named_parameters()
        return tuple(name for name, parameter in named if parameter.requires_grad)

    def checkpoints(self) -> dict[str, Path]:
        """The checkpoint files that there are now, under `last` and `best`."""
        return self._run.kept_checkpoints()

    def metrics(self) -> list[dict[str, Any]]:
        """Every record so far, of earlier processes too: training steps, and validations.

        A record has `step`, and a validation has `split` as well.
        """
        return self._run.read_metrics()

    def predict_episodes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> Iterator[tuple[Episode, Tensor]]:
        """Frozen evaluation episodes, with the predictions of their queries by the weights of now.

        A prediction has shape (n_queries, output_dim), as the run's own evaluation scores it.
        DataError where the split cannot give these episodes.
        """
        return self._run.predict_episodes(split, indices)

    def episode_classes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> list[tuple[str, ...]] | None:
        """The names of the classes of these episodes, each in the order of its labels.

        None where classes have no names.
        """
        return self._run.episode_classes(split, indices)


def _options(
    section: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in section.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _options(value, name)
        elif value is not None:
            yield name, value if isinstance(value, bool | int | float | str) else str(value)

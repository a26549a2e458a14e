"""The learner that fits the shape of an episode, where ways or shots vary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from fsl_core.engine.traces import random_state_kept
from fsl_core.episode import TaskShape
from fsl_core.errors import ShapeError
from fsl_core.learner import Learner


class Fitting:
    """The learner for each shape of episodes: itself, or a twin of it.

    An adapter is built for one number of ways and shots. A twin is built for other numbers, and
    computes with the learner's own parameters and buffers: gradients reach them from every shape,
    and a step moves all twins. An adapter that takes `unequal_shots` serves all numbers of shots.
    """

    def __init__(
        self,
        learner: Learner,
        task: TaskShape | None = None,
        build: Callable[[TaskShape], Learner] | None = None,
    ):
        """A rule for one learner.

        task:  what it was built for; None if it is not known: then it serves all that comes.
        build: another learner with weights of the same names and shapes, for another task.
            None: there is none, and ShapeError is raised when one is needed.
        """
        self.learner, self.task, self._build = learner, task, build
        self._twins: dict[tuple[int, int], _Twin] = {}
        self._progress: float | None = None

    def __call__(self, task: TaskShape | None) -> Learner:
        """The learner for episodes of this shape, in the mode that the learner itself is in now."""
        if self.task is None or task is None or self._key(task) == self._key(self.task):
            return self.learner
        key = self._key(task)
        if key not in self._twins:
            self._twins[key] = _Twin(self.learner, self._made(task))
        twin = self._twins[key]
        twin.follow()
        progress = self._progress
        if progress is not None and progress != twin.told:
            # Not again: threads may be computing with what it was told.
            twin.told = progress
            twin.learner.adapter.on_progress(progress)
        return twin.learner

    def of(self, learner: Learner) -> Fitting:
        """The same rule for a copy of the learner."""
        return Fitting(learner, self.task, self._build)

    def on_progress(self, progress: float) -> None:
        """Tell the adapter, and those of twins, the share of training that is done."""
        self.learner.on_progress(progress)
        self._progress = progress

    def _key(self, task: TaskShape) -> tuple[int, int]:
        return task.n_way, 0 if self.learner.adapter.unequal_shots else task.n_shot

    def _made(self, task: TaskShape) -> Learner:
        if self._build is None:
            raise ShapeError(
                f"adapter {self.learner.adapter.name!r}: this learner was made for {self.task}, "
                f"and cannot be made again for {task}. A recipe, or episodes of one shape"
            )
        with random_state_kept():
            built = self._build(task)
        return Learner(built.backbone, built.adapter, self.learner.hypergradient)


def as_fitting(learner: Learner | Fitting) -> Fitting:
    """A learner alone serves episodes of every shape."""
    return learner if isinstance(learner, Fitting) else Fitting(learner)


class _Twin:
    """A learner whose modules hold the parameters and buffers of another one's."""

    def __init__(self, original: Learner, learner: Learner):
        self.original, self.learner = original, learner
        self.told: float | None = None  # the progress
        self._pairs = [
            (module, learner.get_submodule(name)) for name, module in original.named_modules()
        ]

    def follow(self) -> None:
        """Take over what the original holds now: some modules put new tensors in place of old."""
        for own, twin in self._pairs:
            twin.training = own.training
            twin._parameters.update(own._parameters)
            twin._buffers.update(_persistent(own))
            if type(own).get_extra_state is not nn.Module.get_extra_state:
                twin.set_extra_state(own.get_extra_state())


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Buffers that a checkpoint holds; others may be of a size that belongs to one shape."""
    left_out = module._non_persistent_buffers_set
    return ((name, b) for name, b in module._buffers.items() if name not in left_out)

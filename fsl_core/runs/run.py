"""A run and its directory: one writer, plain files, nothing lost when the process dies."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fsl_core.adapter import Adapter
from fsl_core.assembly.experiment import Experiment
from fsl_core.assembly.preflight import preflight
from fsl_core.config.outer import Schedule
from fsl_core.config.recipe import Recipe
from fsl_core.data.cache import tensors_digest
from fsl_core.engine.choice import Choice
from fsl_core.engine.evaluation import predict_episodes
from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.episode import Episode
from fsl_core.errors import DivergedError, RunError
from fsl_core.hooks.observers import Observers
from fsl_core.hooks.run_view import Best, RunView
from fsl_core.runs import checkpoints
from fsl_core.runs.begun import (
    change_steps,
)
from fsl_core.runs.files import (
    METRICS,
    Record,
    Whole,
    check_record,
    parse_record,
    to_json,
)
from fsl_core.runs.records import Progress, Records
from fsl_core.runs.starting import describe_start, take_start
from fsl_core.runs.stopping import Stop
from fsl_core.text import first_line

CHECKPOINTS = ("last", "best")
WRITTEN_EVERY = 2.0
"""Seconds after which metrics are written, so that others see how a slow run goes."""


class _Best(Record):
    step: Whole
    score: float


class _Progress(Record):
    """What a checkpoint of a run says of its progress."""

    step: Whole
    best: _Best | None
    unvalidated: bool = False


@dataclass
class Run:
    """A recipe being trained, or trained. Observers receive views of it.

    records: what it keeps, in a directory or in memory.
    name: of the recipe's file, without `.yaml`.
    observers: told of what happens.
    plugin_files: sha256 of its one-file plugins, by path.
    optimizer: None if there is nothing to train.
    schedule: factor on its step sizes.
    step: outer steps done.
    resumed_from: the steps that were done when it was resumed.
    best: {"step", "score"} of the best validation so far, or None.
    choice: how its meta-batches are computed and why; None before training.
    unvalidated: the validation of this step was interrupted and is still to be done.
    stop: asks its training to stop.
    notes: what a user should know, such as what was passed over in the data.
    steps_changed: when the number of its steps changed, and from what to what.
    started_from: the run whose weights it started with, and which, if it did.
    ranks: the processes that compute it. The first of them alone writes and tells observers.
    sweep: the name of the sweep that it belongs to, if any.
    """

    records: Records
    name: str
    recipe: Recipe
    observers: Observers
    plugin_files: Mapping[str, str]
    experiment: Experiment
    optimizer: torch.optim.Optimizer | None
    schedule: Schedule
    device: torch.device
    step: int = 0
    resumed_from: int = 0
    best: dict[str, float] | None = None
    choice: Choice | None = None
    unvalidated: bool = False
    stop: Stop = field(default_factory=Stop)
    notes: list[str] = field(default_factory=list)
    steps_changed: list[dict[str, Any]] = field(default_factory=list)
    started_from: dict[str, Any] | None = None
    ranks: Ranks = ALONE
    sweep: str = ""
    _pending: list[str] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _tried: bool = False
    base_rates: list[float] = field(init=False)
    """The step size of each parameter group before any schedule."""

    def __post_init__(self) -> None:
        # Read before anything is restored: a restored optimizer holds the scheduled rates.
        groups = self.optimizer.param_groups if self.optimizer else []
        self.base_rates = [group["lr"] for group in groups]

    @property
    def directory(self) -> Path | None:
        """Where its files lie; None if it keeps nothing."""
        return self.records.directory

    @property
    def folder(self) -> Path:
        """The directory of a run that has one, as every run that is opened again does."""
        if self.directory is None:
            raise RunError(f"{self.name}: this run is in memory alone. A run with a directory")
        return self.directory

    @property
    def steps(self) -> int:
        return self.recipe.sections.outer.steps

    def view(self) -> RunView:
        """What observers are shown of it now."""
        return RunView(
            name=self.name,
            directory=self.directory,
            seed=self.recipe.sections.seed,
            steps=self.steps,
            step=self.step,
            resumed_from=self.resumed_from,
            best=Best(int(self.best["step"]), self.best["score"]) if self.best else None,
            execution=self.choice.in_full if self.choice else "",
            device=str(self.device),
            learner=self.experiment.learner,
            task=self.experiment.source.task,
            test_task=self.experiment.test_task,
            notes=tuple(self.notes),
            sweep=self.sweep,
            _run=self,
        )

    @contextmanager
    def telling_if_stopped(self) -> Iterator[None]:
        """Within this context, observers are told if the run ends early."""
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = first_line(error)
            self.observers.tell(
                "fsl_run_stopped", run=self.view(), interrupted=interrupted, reason=reason
            )
            raise

    def resolved_recipe(self) -> dict[str, Any]:
        """The whole recipe as plain data, in a copy."""
        # Observers ask at every step, and this takes a quarter of the time of `deepcopy`.
        return cast(dict[str, Any], pickle.loads(self._resolved))

    @cached_property
    def _resolved(self) -> bytes:
        return pickle.dumps(self.recipe.resolved())

    def predict_episodes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> Iterator[tuple[Episode, Tensor]]:
        """Frozen evaluation episodes with the predictions of the present weights."""
        experiment, seed = self.experiment, self.recipe.sections.evaluate.seed
        learner, task = experiment.fitting_for(experiment.test_task), experiment.test_task
        return predict_episodes(learner, experiment.source, split, indices, seed, task)

    def episode_classes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> list[tuple[str, ...]] | None:
        """The names of the classes of frozen evaluation episodes, if they have names."""
        experiment, seed = self.experiment, self.recipe.sections.evaluate.seed
        return experiment.source.classes_of(split, indices, seed, experiment.test_task)

    def try_parts(self) -> None:
        """Try the recipe's parts on a made-up episode, once, before the first step."""
        if self.step == 0 and not self._tried:
            preflight(self.experiment)
            self._tried = True

    def progress(self, step: int) -> float:
        """The share of training that is done after this step; 1 if there are no steps."""
        return step / self.steps if self.steps else 1.0

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        learner, weighting = self.experiment.learner, self.experiment.weighting
        kept = {"learner": learner, "weighting": weighting}
        if learner.hypergradient is not None:
            kept["hypergradient"] = learner.hypergradient
        return kept

    def kept_checkpoints(self) -> dict[str, Path]:
        """The checkpoint files that there are, by name; none of a run in memory."""
        if self.directory is None:
            return {}
        kept = [which for which in CHECKPOINTS if self.records.has(which)]
        return {which: Path(self.records.named(which)) for which in kept}

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of training, with those that are not written yet."""
        return [*self.records.metrics(), *filter(None, map(parse_record, self._pending))]

    def save(self, which: str) -> None:
        """Write the checkpoint `last` or `best`, and the metrics up to it.

        Raises TrainingError, and keeps the earlier one, if a weight is not finite.
        """
        self.flush_metrics()
        if name := checkpoints.first_not_finite(self.modules):
            raise DivergedError(
                f"outer step {self.step}: {name} is not finite. "
                f"A smaller step size or clipping may help; an earlier {which} checkpoint is kept"
            )
        self._require_equal_ranks()
        progress: Progress = {"step": self.step, "best": self.best}
        if self.unvalidated:
            progress["unvalidated"] = True

        def write() -> None:
            self.records.save(which, self.modules, self.optimizer, progress)

        self.ranks.gather(write)  # so that no rank looks for it before it is there

    def _require_equal_ranks(self) -> None:
        """Raise RunError if the ranks hold different weights: no checkpoint of it is right."""
        if self.ranks.alone:
            return
        weights = {
            f"{label}.{name}": tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            for label, module in self.modules.items()
            for name, tensor in module.state_dict().items()
            if isinstance(tensor, Tensor)
        }
        digests = self.ranks.gather(lambda: tensors_digest(weights))
        if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise RunError(
                f"outer step {self.step}: rank {other[0]} has other weights than rank 0, so "
                "nothing is saved. Processors of one kind, and random numbers from torch alone"
            )

    def take_start(self) -> None:
        """Take the weights of the run that its recipe starts from, if there is one."""
        self.started_from = take_start(self.recipe, self.experiment.learner)
        if self.started_from:
            self.notes.append(describe_start(self.started_from))

    def restore_last(self) -> None:
        """Go back to the last checkpoint; to the best if that is lost; or to the start."""
        if which := self._kept():
            progress = self._restore(which, self.optimizer)
            self.step, self.best = progress["step"], progress["best"]
            self.unvalidated = progress.get("unvalidated", False)
            self.resumed_from = self.step
        else:
            self.take_start()
        kept = [record for record in self.records.metrics() if record["step"] <= self.step]
        self.records.replace_metrics([to_json(record, METRICS) for record in kept])

    def kept_step(self) -> int:
        """The step that a resume goes on from; 0 if there is no checkpoint."""
        which = self._kept()
        if which is None:
            return 0
        try:
            return check_record(self.records.progress_of(which), _Progress)["step"]
        except ValueError as error:
            where = self.records.named(which)
            raise RunError(f"{where}: {error}. A checkpoint of this run") from error

    def _kept(self) -> str | None:
        return next((which for which in CHECKPOINTS if self.records.has(which)), None)

    def change_steps(self) -> None:
        """Take the steps of its recipe, whatever the run began with; a note says what follows."""
        assert self.directory is not None  # only a run that is opened again changes its steps
        follows = type(self.experiment.learner.adapter).on_progress is not Adapter.on_progress
        if told := change_steps(self.directory, self.recipe, self.kept_step(), follows):
            self.notes.append(told)

    def restore_for_evaluation(self, which: str | None = None) -> str:
        """Load the weights to be judged; returns `best` or `last`.

        which: the checkpoint wanted. None: the one that the recipe asks for.
        """
        which = which or self.recipe.sections.evaluate.checkpoint
        if which == "best" and not self.records.has("best"):
            which = "last"  # never validated, or never settled
        progress = self._restore(which)
        told = max(progress["step"] - 1, 0)  # what the last step that made these weights was told
        self.experiment.fitting.on_progress(self.progress(told))
        return which

    def _restore(self, which: str, optimizer: torch.optim.Optimizer | None = None) -> Progress:
        try:
            restored = self.records.restore(which, self.modules, optimizer)
            progress = check_record(restored, _Progress)
            if progress["step"] > self.steps:
                raise ValueError(f"step {progress['step']}, and the recipe has {self.steps}")
        except ValueError as error:
            where = self.records.named(which)
            raise RunError(f"{where}: {error}. A checkpoint of this run") from error
        return progress

    def record(self, metrics: dict[str, Any]) -> None:
        """Take the metrics of a step; they are written a hundred at a time, or after seconds."""
        self._pending.append(to_json(metrics, f"step {metrics['step']}"))
        if len(self._pending) >= 100 or time.monotonic() - self._flushed >= WRITTEN_EVERY:
            self.flush_metrics()

    def flush_metrics(self) -> None:
        """Append what is not written yet; if there is no room, nothing of it."""
        self.records.append_metrics(self._pending)
        self._pending.clear()
        self._flushed = time.monotonic()

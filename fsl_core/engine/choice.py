"""Which execution suits an adapter, a machine and the length of a run.

A recipe names one, or `auto` measures them. Threads and batches are only right for a task that
leaves nothing behind: what it moved, or the random numbers that it drew, would reach other tasks in
an order that depends on chance. So `fsl_core.engine.traces` first tries a few tasks on copies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fsl_core.adapter import Adapter
from fsl_core.data.groups import Group, as_groups
from fsl_core.data.work import each
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.memory import is_out_of_memory
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.traces import (
    NotCopiableError,
    Traces,
    copied,
    count_ways,
    find_traces,
    random_state_kept,
)
from fsl_core.episode import Episode, Loss
from fsl_core.errors import RunError
from fsl_core.hypergradient import Hypergradient
from fsl_core.learner import Learner
from fsl_core.text import first_line
from fsl_core.weighting import TaskWeighting

MARGIN = 1.15
"""How many times faster another mode must be: of nearly equal ones we take the simplest."""

COMPILE_SECONDS = 60.0
"""What compiling may cost before it is known; small dense nets take 10 to 30 s on two cores."""

COMPILE_GAIN = 3.0
"""How many times faster a compiled step may be expected to be."""

MOMENTS, APART = 16, 0.01
"""Moments of training at which a task is tried, each time at three steps so far apart (shares of
training). A change that lasts for 0.09 of training is found wherever it lies."""

NAMED = "the recipe names it"
_EXECUTIONS, _TEXT = TypeAdapter(Execution), TypeAdapter(str)
_SECONDS = TypeAdapter(dict[str, float | None])
_INEXACT = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm)
_FORWARD_MODE = "the adapter differentiates in forward mode, which one thread at a time can do"
_SHAPES = "episodes have several shapes, and each would be compiled by itself"
_DRIFTS = "it changes at every step, and torch would compile it again each time"
_RANDOM = "a task draws random numbers, and chance would decide which thread gets which"


@dataclass(frozen=True)
class Choice:
    """An execution and why it was chosen.

    seconds: what a meta-batch took by each execution that was measured; None if it failed.
    when:    how a measured choice came about, for people; it decides nothing.
    """

    execution: Execution
    reason: str
    seconds: dict[str, float | None]
    when: str = ""

    def __str__(self) -> str:
        return f"{self.execution}: {self.reason}"

    @property
    def in_full(self) -> str:
        """The choice, and how it came about."""
        return f"{self} ({self.when})" if self.when else str(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `from_dict` takes it."""
        told = {"reason": self.reason, "seconds_measured": self.seconds, "when": self.when}
        return {**asdict(self.execution), **told}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Choice:
        """What `as_dict` gave. Raises RunError if it is something else."""
        settings = {key: data[key] for key in Execution.__dataclass_fields__ if key in data}
        try:
            return cls(
                _EXECUTIONS.validate_python(settings),
                _TEXT.validate_python(data.get("reason")),
                _SECONDS.validate_python(data.get("seconds_measured", {})),
                _TEXT.validate_python(data.get("when", "")),
            )
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"])) or "execution"
            raise RunError(
                f"a stored execution: {key}: {fault['msg']}. The file as it was written"
            ) from error


@dataclass(frozen=True)
class Setting:
    """What an execution is chosen for. Everything is tried on copies: nothing here changes.

    episodes: a meta-batch as training will meet them; groups, if they are of several shapes.
    progress: of training, in 0 .. 1.
    rule:     finds the learner for each shape; None: it serves all that comes.
    """

    learner: Learner
    weighting: TaskWeighting
    episodes: Episode | Sequence[Group]
    loss: Loss
    progress: float = 0.0
    rule: Fitting | None = None

    @property
    def groups(self) -> Sequence[Group]:
        return as_groups(self.episodes)

    @property
    def fitted(self) -> Fitting:
        """The learner for each shape, told of the progress."""
        fitted = self.rule.of(self.learner) if self.rule else Fitting(self.learner)
        fitted.on_progress(self.progress)
        return fitted

    @property
    def varies(self) -> bool:
        """Whether meta-batches have several shapes."""
        task = self.rule.task if self.rule else None
        return len(self.groups) > 1 or (task is not None and bool(task.varies))

    def copied(self) -> Setting:
        """Copies of the parts, in training at this progress.

        Raises NotCopiableError with the reason.
        """
        learner, weighting = copied(self.learner, self.weighting)
        learner.train()
        return replace(self, learner=learner, weighting=weighting)

    @cached_property
    def traces(self) -> Traces:
        """What a task of training leaves behind, now and at the end of training.

        Both, because an adapter may change in between, such as after a warm-up.
        """
        found = [self._traces_at(progress) for progress in sorted({self.progress, 1.0})]
        moved = next((traces.moved for traces in found if traces.moved), None)
        return Traces(moved, any(traces.random for traces in found))

    @cached_property
    def drifts(self) -> bool:
        """Whether tasks are computed in another way at every step for some part of training.

        Such as while an adapter switches slowly from one method to another. torch takes a number
        of an adapter for a constant, compiles again, and stops after eight variants. A switch at
        once is not meant, nor one by a number in a buffer, which is an input. Raises
        NotCopiableError with the reason.
        """
        if not _is_told_of_progress(self.learner):
            return False
        learner, (episode, _) = self._tried(self.copied())

        def loss_of() -> Tensor:
            return learner.objective(episode, self.loss)[0]

        starts = [number / MOMENTS for number in range(MOMENTS)]
        near = [(start, start + APART, start + 2 * APART) for start in starts]
        return any(count_ways(learner, moments, loss_of) == len(moments) for moments in near)

    def _traces_at(self, progress: float) -> Traces:
        learner, episodes = self._tried(replace(self, progress=progress).copied())
        return find_traces(
            learner, episodes, lambda learner, episode: learner.objective(episode, self.loss)
        )

    def _tried(self, parts: Setting) -> tuple[Learner, tuple[Episode, Episode]]:
        """The learner of the most frequent shape, with the first and last episode of that."""
        group = max(self.groups, key=lambda group: len(group.places))
        episodes = group.episodes.unbatch()
        return parts.fitted(group.task), (episodes[0], episodes[-1])


def _is_told_of_progress(learner: Learner) -> bool:
    told = [type(learner.adapter).on_progress is not Adapter.on_progress]
    if learner.hypergradient is not None:
        told.append(type(learner.hypergradient).on_progress is not Hypergradient.on_progress)
    return any(told)


def why_not_vectorized(learner: Learner) -> str | None:
    """What keeps a learner from being computed as one batch of tasks, or None."""
    if not learner.vectorizable:
        return f"{_one_at_a_time(learner)} takes one task at a time"
    modules = [
        *learner.backbone.named_modules(prefix="backbone"),
        *learner.adapter.named_modules(prefix="adapter"),
    ]
    for name, module in modules:
        affine = getattr(module, "affine", True)
        tracks = getattr(module, "track_running_stats", False)
        if isinstance(module, _INEXACT) and (affine or tracks):
            return (
                f"{name} is a {type(module).__name__}, whose second derivatives are wrong under "
                "vmap, or which keeps statistics; fsl_core.Norm is exact"
            )
    return None


def _one_at_a_time(learner: Learner) -> str:
    estimate = learner.hypergradient
    if learner.adapter.vectorizable and estimate is not None:
        return f"hypergradient {estimate.name!r}"
    return f"adapter {learner.adapter.name!r}"


def rules_out(execution: Execution, learner: Learner) -> str | None:
    """What is known beforehand that makes an execution wrong for a learner, or None."""
    if execution.mode != "loop":
        return why_not_vectorized(learner) or (
            "gradients are checkpointed" if execution.checkpoint_gradients else None
        )
    return _FORWARD_MODE if execution.workers > 1 and not learner.threadable else None


def settle(wanted: Execution, setting: Setting) -> Choice:
    """The execution that a recipe names, or the nearest one if that is wrong or fails.

    The nearest is `loop`, or one worker, and the reason says why. No time is measured: the same
    recipe settles on the same execution on every machine with the same versions.
    """
    settled, reasons = wanted, []
    while correction := _correction(settled, setting):
        settled, reason = correction
        reasons.append(reason)
    return Choice(settled, "; ".join(reasons) or NAMED, {})


def choose(options: Execution, setting: Setting, steps: int, measure_workers: bool) -> Choice:
    """The fastest execution for `steps` meta-batches like those of the setting.

    options: settings common to all modes.
    measure_workers: try as many workers as torch has threads, too.
    """
    loop = settle(replace(options, mode="loop"), setting)
    try:
        traces = setting.traces
    except NotCopiableError as error:
        return replace(loop, reason=f"nothing is tried, because it cannot be copied: {error}")
    if traces.moved:
        return replace(loop, reason=f"one task at a time: {_moved(traces)}")
    # Training has to start from the same random state whether or not something was measured.
    with random_state_kept():
        return _measured(loop, setting, steps, measure_workers and not traces.random)


def _measured(loop: Choice, setting: Setting, steps: int, measure_workers: bool) -> Choice:
    trials = _Trials(setting)
    best, seconds = loop.execution, trials.measure(loop.execution)
    reason = "one task at a time was fastest" if loop.reason == NAMED else loop.reason
    several = replace(best, workers=_workers(setting)) if measure_workers else best
    if several != best and not rules_out(several, setting.learner):
        found = trials.measure(several)
        if found < seconds:
            best, seconds, reason = several, found, "whole tasks on each core were fastest"
    vmap = replace(loop.execution, mode="vmap", workers=1)
    obstacle = rules_out(vmap, setting.learner)
    if obstacle:
        return Choice(best, f"{reason}; no vmap: {obstacle}", trials.seconds)
    found = trials.measure(vmap)
    if found * MARGIN < seconds:
        best, seconds, reason = vmap, found, "all tasks as one batch were fastest"
        repays = steps * seconds * (1 - 1 / COMPILE_GAIN) > COMPILE_SECONDS
        if repays and not setting.varies and setting.drifts:
            reason = f"{reason}; not compiled: {_DRIFTS}"
        elif repays and not setting.varies:
            compiled = replace(vmap, mode="compiled")
            if trials.measure(compiled) * MARGIN < seconds:
                best, reason = compiled, "a long run of small operations repays compiling"
    return Choice(best, "; ".join([reason, *trials.failed]), trials.seconds)


def _workers(setting: Setting) -> int:
    """One for each of torch's threads, at most one a task; one on a GPU, which shares itself."""
    on_cpu = setting.groups[0].episodes.support.x.device.type == "cpu"
    tasks = sum(len(group.places) for group in setting.groups)
    return min(torch.get_num_threads(), tasks) if on_cpu else 1


def _correction(wanted: Execution, setting: Setting) -> tuple[Execution, str] | None:
    """What to compute by instead, with the reason; None if the execution is right and works."""
    if obstacle := rules_out(wanted, setting.learner):
        return _loop(wanted, obstacle) if wanted.mode != "loop" else _alone(wanted, obstacle)
    if wanted.mode == "compiled" and setting.varies:
        return replace(wanted, mode="vmap"), f"vmap instead of compiled: {_SHAPES}"
    if wanted.mode == "loop" and wanted.workers == 1:
        return None
    try:
        traces = setting.traces
    except NotCopiableError as error:
        return _alone(wanted, f"it cannot be copied: {error}")
    if traces.moved:
        return _alone(wanted, _moved(traces))
    if wanted.mode == "loop":
        return _alone(wanted, _RANDOM) if traces.random else None
    if wanted.mode == "compiled" and setting.drifts:
        return replace(wanted, mode="vmap"), f"vmap instead of compiled: {_DRIFTS}"
    failure = _Trials(setting).failure(wanted)
    return _loop(wanted, f"it failed: {failure}") if failure else None


def _loop(wanted: Execution, obstacle: str) -> tuple[Execution, str]:
    return replace(wanted, mode="loop", chunk=None), f"loop instead of {wanted.mode}: {obstacle}"


def _alone(wanted: Execution, obstacle: str) -> tuple[Execution, str]:
    if wanted.mode != "loop":
        loop, reason = _loop(wanted, obstacle)
        return replace(loop, workers=1), reason
    return replace(wanted, workers=1), f"1 worker instead of {wanted.workers}: {obstacle}"


def _moved(traces: Traces) -> str:
    return f"a task moves {traces.moved}, which the task after it finds"


class _Trials:
    """Meta-batches computed by copies of the parts, a fresh copy for each execution."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.seconds: dict[str, float | None] = {}
        self.failed: list[str] = []

    def measure(self, execution: Execution) -> float:
        """Seconds of a meta-batch, the best of two after a first one; infinite if it fails.

        The first one is not timed: it compiles, or fills caches and memory.
        """
        try:
            seconds = min(self._timed(execution))
        except Exception as error:  # such as a missing compiler: the loop needs none
            if execution.mode == "loop":
                raise
            self.seconds[str(execution)] = None
            self.failed.append(f"{execution} failed: {_failure(error)}")
            return float("inf")
        self.seconds[str(execution)] = seconds
        return seconds

    def failure(self, execution: Execution) -> str | None:
        """Why an execution fails, in one line; None if it works."""
        try:
            with random_state_kept():
                next(self._timed(execution, batches=1), None)
        except Exception as error:  # torch may raise anything here; the loop still works
            return _failure(error)
        return None

    def _timed(self, execution: Execution, batches: int = 3) -> Iterator[float]:
        """Seconds of each meta-batch but the first."""
        parts = self.setting.copied()
        compute = MetaGradient(parts.fitted, parts.weighting, parts.loss, execution)
        for batch in each(range(batches), f"trying execution {execution}"):
            started = time.perf_counter()
            compute(parts.episodes)
            if parts.groups[0].episodes.support.x.is_cuda:
                torch.cuda.synchronize()
            if batch > 0:
                yield time.perf_counter() - started


def _failure(error: Exception) -> str:
    if is_out_of_memory(error):
        return "not enough memory; a smaller execution.chunk takes fewer tasks at a time"
    return first_line(error)

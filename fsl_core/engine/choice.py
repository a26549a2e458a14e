"""`mode: auto`: which execution suits an adapter, a machine and the length of a run, by a short measurement."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.workers import copy_modules, draws_random_numbers
from fsl_core.episode import Episode, Learner, Loss, TaskWeighting

MARGIN = 1.15  # how many times faster another mode must be: nearly equal ones should not change from run to run
COMPILE_SECONDS = 60.0  # what compiling may cost before it is known; small dense nets take 10 to 30 s on two cores
COMPILE_GAIN = 3.0  # how many times faster a compiled step may be expected to be
_NOT_SHARED = "the adapter differentiates in forward mode, which threads cannot do at once"
_INEXACT = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Choice:
    """An execution, why it was chosen, and the seconds a meta-batch took by each that was measured."""

    execution: Execution
    reason: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        return f"{self.execution}: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `from_dict` takes it; JSON has no number for the time of what failed."""
        seconds = {name: s for name, s in self.seconds.items() if math.isfinite(s)}
        return {**asdict(self.execution), "reason": self.reason, "seconds_measured": seconds}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Choice:
        settings = {key: data[key] for key in Execution.__dataclass_fields__ if key in data}
        return cls(Execution(**settings), data["reason"], data.get("seconds_measured", {}))


def why_not_vectorized(learner: Learner) -> str | None:
    """What keeps a learner from being computed as one batch of tasks, or None."""
    if not learner.adapter.vectorizable:
        return f"adapter {learner.adapter.name!r} takes one task at a time"
    modules = [
        *learner.backbone.named_modules(prefix="backbone"),
        *learner.adapter.named_modules(prefix="adapter"),
    ]
    for name, module in modules:
        if isinstance(module, _INEXACT) and (
            getattr(module, "affine", True) or getattr(module, "track_running_stats", False)
        ):
            return (
                f"{name} is a {type(module).__name__}, whose second derivatives are wrong under vmap, or which keeps statistics; "
                "fsl_core.Norm is exact"
            )
    return None


def settle(wanted: Execution, learner: Learner) -> Choice:
    """The execution that a recipe names, or `loop` with the reason where that one would be wrong or does not exist."""
    if wanted.workers > 1 and not learner.adapter.threadable:
        return Choice(
            replace(wanted, workers=1), f"1 worker instead of {wanted.workers}: {_NOT_SHARED}", {}
        )
    obstacle = why_not_vectorized(learner) or (
        "gradients are checkpointed" if wanted.checkpoint_gradients else None
    )
    if obstacle and wanted.mode != "loop":
        return Choice(
            replace(wanted, mode="loop", chunk=None),
            f"loop instead of {wanted.mode}: {obstacle}",
            {},
        )
    return Choice(wanted, "the recipe names it", {})


def choose(
    options: Execution,
    learner: Learner,
    weighting: TaskWeighting,
    episodes: Episode,
    loss: Loss,
    steps: int,
    measure_workers: bool,
) -> Choice:
    """The fastest execution for `steps` meta-batches like `episodes`; the learner's gradients are lost.

    options: settings common to all modes.    measure_workers: try as many workers as torch has threads, too.
    """
    if not learner.adapter.threadable:
        options = replace(options, workers=1)
    trials = _Trials(learner, weighting, episodes, loss)
    loop = replace(options, mode="loop")
    best, seconds, reason = loop, trials.measure(loop), "one task at a time was fastest"
    if measure_workers and _may_share_tasks(learner, episodes, loss):
        several = replace(loop, workers=min(torch.get_num_threads(), len(episodes.id)))
        if several.workers > 1 and (found := trials.measure(several)) < seconds:
            best, seconds, reason = several, found, "whole tasks on each core were fastest"
    obstacle = why_not_vectorized(learner)
    if obstacle or options.checkpoint_gradients:
        return Choice(
            best, f"{reason}; no vmap: {obstacle or 'gradients are checkpointed'}", trials.seconds
        )
    vmap = replace(options, mode="vmap", workers=1)
    if trials.measure(vmap) * MARGIN < seconds:
        best, seconds, reason = vmap, trials.seconds["vmap"], "all tasks as one batch were fastest"
        if steps * seconds * (1 - 1 / COMPILE_GAIN) > COMPILE_SECONDS:
            compiled = replace(vmap, mode="compiled")
            if trials.measure(compiled) * MARGIN < seconds:
                best, reason = compiled, "a long run of small operations repays compiling"
    if trials.failed:
        reason = f"{reason}; {trials.failed}"
    return Choice(best, reason, trials.seconds)


class _Trials:
    def __init__(self, *parts: Any):
        self.learner, self.weighting, self.episodes, self.loss = parts
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def measure(self, execution: Execution) -> float:
        """Seconds of a meta-batch, the best of two after a first one; infinite where it fails."""
        try:
            self.seconds[str(execution)] = min(self._timed(execution))
        except Exception as error:  # such as a missing compiler: the loop is there for it
            if execution.mode == "loop":
                raise
            self.seconds[str(execution)] = float("inf")
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.failed = f"{execution} failed: {reason}"
        return self.seconds[str(execution)]

    def _timed(self, execution: Execution) -> Iterator[float]:
        weighting = copy.deepcopy(self.weighting)  # one with a memory must not remember trials
        compute = MetaGradient(self.learner, weighting, self.loss, execution)
        for trial in range(3):
            started = time.perf_counter()
            compute(self.episodes)
            if self.episodes.support.x.is_cuda:
                torch.cuda.synchronize()
            if trial > 0:
                yield time.perf_counter() - started


def _may_share_tasks(learner: Learner, episodes: Episode, loss: Loss) -> bool:
    """On a CPU, where a task draws no random numbers (threads would mix them up) and the modules can be copied."""
    if episodes.support.x.device.type != "cpu" or not learner.adapter.threadable:
        return False
    try:
        copy_modules(learner)
    except (
        Exception
    ):  # a module says in its own way that it cannot be copied; then one thread takes all tasks
        return False
    return not draws_random_numbers(lambda: learner.objective(episodes.unbatch()[0], loss))

"""How a run's meta-batches are computed: chosen once for a recipe, a machine and the versions.

What was measured is kept in the cache and read by the next run: a choice that every run made again
with a stopwatch would give the same recipe other bits. A run also keeps it in its directory.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import platform
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fsl_core.assembly.experiment import Experiment
from fsl_core.config.options import Component
from fsl_core.data.cache import content_key
from fsl_core.data.seeding import seed_torch
from fsl_core.engine.choice import (
    NAMED,
    Choice,
    Setting,
    choose,
    rules_out,
    settle,
    why_not_vectorized,
)
from fsl_core.engine.devices import multiplies_bfloat16, processor
from fsl_core.engine.execution import Execution, Mode, Precision
from fsl_core.engine.kept import ChoiceFile
from fsl_core.engine.peak import SHARE, fitting_chunk, memory_of
from fsl_core.engine.traces import NotCopiableError, random_state_kept
from fsl_core.episode import TaskShape
from fsl_core.errors import RecipeError, RunError
from fsl_core.runs.run import Run

RULES = 3
"""One more when `fsl_core.engine.choice` chooses otherwise: what was kept is measured again."""

AGAIN = "`fsl tune-execution RECIPE` measures again"


def choose_execution(run: Run) -> Choice:
    """What the run has used so far, else what its recipe names, else what is kept or measured."""
    if run.choice is not None:
        return run.choice

    def choose() -> dict[str, Any]:
        choice = _Question(run.experiment, run.device).answer()
        run.records.keep_choice(choice)
        return choice.as_dict()

    return Choice.from_dict(run.ranks.told(choose))


def execution_of(experiment: Experiment, mode: Mode) -> Execution:
    """A mode with what the recipe says of all modes."""
    wanted = experiment.recipe.sections.execution
    workers, precision = wanted.workers or 1, wanted.precision
    return Execution(mode, workers, wanted.chunk, precision, wanted.checkpoint_gradients)


def why_not_shared(run: Run) -> str:
    """Why ranks cannot share the tasks of a meta-batch, or "" if they can.

    A task that finds what the one before it left, or random numbers drawn for a whole batch, need
    one process. Then every rank computes all tasks, to the same bits.
    """
    assert run.choice is not None  # it was chosen before
    mode, experiment = run.choice.execution.mode, run.experiment
    if run.ranks.alone:
        return ""

    def look() -> str:
        try:
            traces = _Question(experiment, run.device).setting.traces
        except NotCopiableError as error:
            return f"nothing is tried, because it cannot be copied: {error}"
        if traces.moved:
            return f"one of them moves {traces.moved}, which the next one finds"
        drawn = traces.random and mode != "loop"
        return "their random numbers are drawn as one batch. execution.mode: loop" if drawn else ""

    return run.ranks.told(look)


def workers_of(run: Run) -> int:
    """Tasks that an evaluation may compute at once, as training did."""
    return run.choice.execution.workers if run.choice else 1


def kept_execution(experiment: Experiment, device: torch.device) -> Choice | None:
    """How the next run of a recipe with `mode: auto` will be computed, if it was measured."""
    question = _Question(experiment, device)
    untrained = experiment.recipe.sections.outer.steps == 0
    return None if question.named or untrained else question.kept()


def tune_execution(experiment: Experiment, device: torch.device) -> tuple[Choice | None, Choice]:
    """Measure again and keep the outcome; returns what was kept before, and what is kept now.

    RecipeError if the recipe names a mode; RunError if the cache cannot be written.
    """
    question = _Question(experiment, device)
    if not experiment.recipe.sections.outer.steps:
        where = experiment.recipe.document.where(("outer", "steps"))
        raise RecipeError(f"{where}: no steps, so there is nothing to measure. One step or more")
    if question.named:
        where = experiment.recipe.document.where(("execution", "mode"))
        raise RecipeError(
            f"{where}: the recipe names `{question.named.mode}`, so there is nothing to measure. "
            "`-s execution.mode=auto`"
        )
    try:
        question.file.check_writable()
        before = question.file.read()
        now = question.file.keep(question.measure(), replace=True)
        return before.choice if before else None, now.choice
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{question.file.path.parent}: {reason}. A cache folder that can be written to, "
            "such as one named in FSL_CACHE"
        ) from error


@dataclass(frozen=True)
class _Question:
    """How to compute the meta-batches of an experiment on a device."""

    experiment: Experiment
    device: torch.device

    def answer(self) -> Choice:
        if not self.experiment.recipe.sections.outer.steps:
            return Choice(execution_of(self.experiment, "loop"), "nothing is trained", {})
        if self.named:
            return self._told(self._settled(self.named))
        return self.kept() or self._measured()

    @cached_property
    def named(self) -> Execution | None:
        """What the recipe names; None if it leaves the mode to a measurement."""
        mode = self.experiment.recipe.sections.execution.mode
        return None if mode == "auto" else self._options(mode)

    def kept(self) -> Choice | None:
        """What was measured before, unless the learner has changed and rules it out now."""
        kept = self.file.read()
        if kept is None or rules_out(kept.choice.execution, self.experiment.learner):
            return None
        return replace(kept.choice, when=f"measured before, on {kept.measured_on}; {AGAIN}")

    def measure(self) -> Choice:
        wanted, steps = self.experiment.recipe.sections.execution, self._steps_at_least
        with random_state_kept():
            seed_torch(self.experiment.recipe.sections.seed, "measurement")
            free = wanted.workers is None
            options = self._options("loop")
            return self._told(choose(options, self.setting, steps, measure_workers=free))

    @cached_property
    def file(self) -> ChoiceFile:
        return ChoiceFile(self._decides_speed())

    @cached_property
    def setting(self) -> Setting:
        experiment, sections = self.experiment, self.experiment.recipe.sections
        tasks = range(sections.outer.meta_batch_size)
        groups = experiment.source.groups("train", tasks, sections.seed)
        loss, rule = experiment.source.task.loss, experiment.fitting
        return Setting(experiment.learner, experiment.weighting, groups, loss, rule=rule)

    def _settled(self, named: Execution) -> Choice:
        if named.mode == "loop" and named.workers == 1:
            return Choice(named, NAMED, {})
        if named.mode != "compiled" or self.setting.varies:
            return settle(named, self.setting)
        tried = self.file.read()  # compiling to see whether it can be done takes its time
        if tried and tried.choice.execution == named and not rules_out(named, self.setting.learner):
            return tried.choice
        choice = settle(named, self.setting)
        if choice.execution == named:
            with contextlib.suppress(OSError):
                self.file.keep(choice)
        return choice

    def _measured(self) -> Choice:
        outdated, damaged = self.file.read() is not None, self.file.path.exists()
        try:
            self.file.check_writable()
            choice = self.measure()
            kept = self.file.keep(choice, replace=outdated)
        except OSError as error:
            return self._without_measuring(error)
        when = f"measured on {kept.measured_on} and kept for later runs; {AGAIN}"
        if kept.choice != choice:
            when = "measured by another process at the same time"
        elif damaged and not outdated:
            when = f"measured again, because {self.file.path} was damaged"
        return replace(kept.choice, when=when)

    def _without_measuring(self, error: OSError) -> Choice:
        """What the next run will choose as well, although nothing can be kept for it."""
        loop = settle(self._options("loop"), self.setting)
        where, why = self.file.path.parent, error.strerror or error
        reason = f"nothing is measured, because it could not be kept: {where}: {why}"
        return replace(loop, reason=reason if loop.reason == NAMED else f"{loop.reason}; {reason}")

    def _options(self, mode: Mode) -> Execution:
        return replace(execution_of(self.experiment, mode), chunk=self._chunk)

    @cached_property
    def _chunk(self) -> int | None:
        """How many tasks are batched at most: what the recipe names, or what fits; None: all."""
        wanted, memory = self.experiment.recipe.sections.execution, memory_of(self.device)
        one_by_one = wanted.mode == "loop" or why_not_vectorized(self.experiment.learner)
        if wanted.chunk or one_by_one or memory is None:
            return wanted.chunk
        together = execution_of(self.experiment, "vmap")
        with contextlib.suppress(Exception):  # what fails here is told when it is tried
            return fitting_chunk(self.setting, together, SHARE * memory)
        return None

    def _told(self, choice: Choice) -> Choice:
        """With the reason for a chunk that nobody named, and a word on a precision without use."""
        useless = _why_useless(choice.execution.precision, self.device)
        if useless:
            choice = replace(choice, reason=f"{choice.reason}; {useless}")
        chunk = choice.execution.chunk if choice.execution.mode != "loop" else None
        if chunk is None or chunk == self.experiment.recipe.sections.execution.chunk:
            return choice
        tasks = "1 task" if chunk == 1 else f"{chunk} tasks"
        why = f"more than {tasks} at a time would take over half of the memory"
        return replace(choice, reason=f"{choice.reason}; {why}")

    @property
    def _steps_at_least(self) -> int:
        """The number of outer steps rounded down to a power of two: it decides about compiling."""
        return 1 << (self.experiment.recipe.sections.outer.steps.bit_length() - 1)

    def _decides_speed(self) -> dict[str, Any]:
        recipe, source = self.experiment.recipe, self.experiment.source
        parts: dict[str, tuple[str, ...]] = {
            "backbone": ("backbone",),
            "adapter": ("adapter",),
            "hypergradient": ("outer", "hypergradient"),
            "weighting": ("outer", "weighting"),
        }
        whole = recipe.resolved()
        return {
            "episodes": {"name": recipe.chosen["episodes",].name, "task": _task(source.task)},
            "components": {
                name: {"options": _at(whole, path), "code": _code_of(recipe.chosen[path])}
                for name, path in parts.items()
            },
            "meta_batch_size": recipe.sections.outer.meta_batch_size,
            "steps_at_least": self._steps_at_least,
            "rules": RULES,
            "execution": whole["execution"],
            "machine": _machine(self.device),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "fsl-core": metadata.version("fsl-core"),
            },
        }


def _why_useless(precision: Precision, device: torch.device) -> str:
    """Why a precision gains nothing on this machine, or "" if it may."""
    if precision == "tf32" and device.type != "cuda":
        return f"tf32 is of GPUs and changes nothing on {device.type}"
    if precision == "bf16" and not multiplies_bfloat16(device):
        return (
            f"this {device.type} has no units for bfloat16, and is slower in bf16 than in float32"
        )
    return ""


def _task(task: TaskShape) -> dict[str, Any]:
    """Without `varies` where nothing does: a choice that was kept before stays known."""
    data = asdict(task)
    return data if task.varies else {key: data[key] for key in data if key != "varies"}


def _at(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _code_of(component: Component) -> list[str]:
    """Whose code a component is and which, because in development no version says that it changed.

    Where a one-file plugin lies does not count: the recipe and the plugin may be copied together.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(component.factory))
    except TypeError:  # built in, or made by a function
        file = None
    origin = "" if Path(component.origin).is_file() else component.origin
    return [origin, content_key(Path(file)) if file and Path(file).is_file() else ""]


def _machine(device: torch.device) -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }

"""Who can compute a meta-gradient: our executions, other libraries, and torch alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import cast

from torch import Tensor

from benchmarks import ours
from benchmarks.peers import BASELINES, LIBRARIES, NAMES, meta_gradient_of
from benchmarks.problems import Problem
from benchmarks.race import LeftOut
from benchmarks.ranks import Processes
from fsl_core.engine.devices import multiplies_bfloat16
from fsl_core.engine.execution import Precision

Gradients = Callable[[], list[Tensor]]
"""Computes and returns a meta-gradient, one tensor a parameter."""

_OF_OURS = " of ours"

FEWER_DIGITS: dict[str, list[tuple[Precision, str]]] = {
    "cpu": [("bf16", "workers"), ("bf16", ours.PROCESSES)],
    "cuda": [("tf32", "compiled"), ("bf16", "compiled")],
}
"""Ours with fewer digits than float32, on each kind of device."""


def contenders(
    problem: Problem, slow_to_start: bool, processes: bool = False
) -> tuple[dict[str, Gradients], dict[str, str]]:
    """Everybody who can compute this meta-gradient; and why the others cannot.

    Ours are called `ours, <execution>`.
    """
    entered: dict[str, Gradients] = {}
    left_out: dict[str, str] = {}
    for execution in ours.EXECUTIONS:
        if not slow_to_start and execution in ours.SLOW_TO_START:
            left_out[f"ours, {execution}"] = (
                "compiling takes minutes here, for what a loop nearly reaches"
            )
        else:
            _enter(entered, left_out, f"ours, {execution}", partial(_own, problem, execution))
    if processes:
        own = partial(_own, problem, ours.PROCESSES)
        _enter(entered, left_out, f"ours, {ours.PROCESSES}", own)
    for name in (*LIBRARIES, *BASELINES):
        _enter(entered, left_out, name_of(name), partial(meta_gradient_of, name, problem))
    return entered, left_out


def enter_fewer_digits(
    problem: Problem, entered: dict[str, Gradients], left_out: dict[str, str]
) -> None:
    """Ours with fewer digits: no rival of float32, and not held to the others' numbers.

    They are called `<precision>, <execution> of ours`.
    """
    for precision, execution in FEWER_DIGITS[problem.episodes.support.x.device.type]:
        prepare = partial(_own, problem, execution, precision)
        _enter(entered, left_out, f"{precision}, {execution}{_OF_OURS}", prepare)


def contender(problem: Problem, name: str) -> Gradients:
    """The one of this name; no other peer is imported."""
    for execution in (*ours.EXECUTIONS, ours.PROCESSES):
        if name == f"ours, {execution}":
            return _own(problem, execution)
    for precision, execution in chain(*FEWER_DIGITS.values()):
        if name == f"{precision}, {execution}{_OF_OURS}":
            return _own(problem, execution, precision)
    module = next(module for module in (*LIBRARIES, *BASELINES) if name_of(module) == name)
    return meta_gradient_of(module, problem)


def name_of(module: str) -> str:
    """How a peer calls itself."""
    return NAMES[module]


def _own(problem: Problem, execution: str, precision: Precision = "float32") -> Gradients:
    learner, episodes = problem.learner, problem.episodes
    if precision == "bf16" and not multiplies_bfloat16(episodes.support.x.device):
        raise LeftOut("no units for bfloat16 here")
    if execution == ours.PROCESSES:
        return Processes(learner, episodes, problem.loss, precision)
    named = cast(ours.Name, execution)
    return ours.prepare(learner, episodes, problem.loss, named, precision=precision)


def _enter(
    entered: dict[str, Gradients],
    left_out: dict[str, str],
    name: str,
    prepare: Callable[[], Gradients],
) -> None:
    try:
        entered[name] = prepare()
    except LeftOut as reason:
        left_out[name] = str(reason)

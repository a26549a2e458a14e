"""Our side of every race: the only module here that touches the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import fsl_core as fsl
from benchmarks.race import LeftOut
from fsl_core.config.options import Kind
from fsl_core.engine.choice import why_not_vectorized
from fsl_core.engine.execution import Execution, Precision
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.episode import Loss
from fsl_core.hooks.loader import Loaded, load

Name = Literal["loop", "workers", "vmap", "compiled"]
EXECUTIONS: tuple[Name, ...] = get_args(Name)
"""How a meta-batch can be computed; every race enters each of them.

workers: a loop with as many as torch has threads.
"""

PROCESSES = "processes"
"""The workers as processes, as a long `fsl run` starts them; for races of meta-gradients."""

SLOW_TO_START = frozenset({"compiled"})
"""Executions that take a minute before their first result.

They are not entered where many shapes are measured, nor in float64.
"""


def prepare(
    learner: fsl.Learner,
    episodes: fsl.Episode,
    loss: Loss,
    execution: Name,
    weighting: str = "uniform",
    precision: Precision = "float32",
) -> Callable[[], list[Tensor]]:
    """A function that computes and returns the meta-gradient of a meta-batch.

    It has one tensor a parameter of the learner.
    """
    parameters = [p for p in learner.parameters() if p.requires_grad]
    weigh = build("weighting", weighting, columns=fsl.gradient_columns(learner), tasks=None)
    chosen = replace(as_execution(execution, learner), precision=precision)
    compute = MetaGradient(learner, weigh, loss, chosen)

    def run() -> list[Tensor]:
        compute(episodes)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    return run


def as_execution(name: Name, learner: fsl.Learner) -> Execution:
    """Raises LeftOut if this learner, or this machine, has no such execution."""
    if name == "workers":
        if torch.get_num_threads() == 1 or next(learner.parameters()).is_cuda:
            raise LeftOut("workers: one core, or a GPU")
        return Execution(workers=torch.get_num_threads())
    obstacle = why_not_vectorized(learner) if name != "loop" else None
    if obstacle:
        raise LeftOut(f"{name}: {obstacle}")
    return Execution(name)


def training(
    learner: fsl.Learner, source: fsl.EpisodeSource, tasks: int, lr: float, execution: Name
) -> Callable[[], float]:
    """A function that makes one outer step.

    It draws a meta-batch, computes its meta-gradient, steps with Adam and scores the queries.
    """
    optimizer = torch.optim.Adam(learner.parameters(), lr)
    weigh = build("weighting", "uniform", columns={}, tasks=None)
    compute = MetaGradient(learner, weigh, source.task.loss, as_execution(execution, learner))
    steps: Iterator[int] = count()

    def step() -> float:
        first = next(steps) * tasks
        episodes = source.batch("train", range(first, first + tasks), seed=0)
        outcome = compute(episodes)
        optimizer.step()
        assert isinstance(outcome.predictions, torch.Tensor)  # all of one shape
        score = source.task.score(outcome.predictions, episodes.query.y)
        return float(outcome.losses.mean()) + float(score.mean())

    return step


@cache
def loaded() -> Loaded:
    return load()


def build(kind: Kind, name: str, options: dict | None = None, **injected: Any) -> Any:
    """A component by its recipe name. LeftOut if it is not installed or refuses its options."""
    try:
        component = loaded().catalogue.get(kind, name)
        return component.build(component.options(name=name, **(options or {})), **injected)
    except (fsl.FslError, ValueError) as error:
        raise LeftOut(" ".join(str(error).split())) from error


def learner(
    task: fsl.TaskShape, backbone: tuple[str, dict], adapter: tuple[str, dict], seed: int = 0
) -> fsl.Learner:
    """Backbone and adapter by name and options, their start values a function of the seed."""
    torch.manual_seed(seed)
    body = build("backbone", backbone[0], backbone[1], task=task)
    return fsl.Learner(body, build("adapter", adapter[0], adapter[1], task=task, backbone=body))

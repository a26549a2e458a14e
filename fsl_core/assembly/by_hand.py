"""An experiment of parts that a program has made, without a recipe file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import ValidationError

from fsl_core.assembly.experiment import Experiment
from fsl_core.config.document import Document, KeyPath
from fsl_core.config.options import Component, Kind
from fsl_core.config.recipe import Recipe
from fsl_core.config.sections import Evaluate, ExecutionOptions, Outer
from fsl_core.data.source import EpisodeSource
from fsl_core.episode import TaskShape
from fsl_core.errors import RecipeError, ShapeError
from fsl_core.learner import Learner
from fsl_core.weighting import TaskWeighting

SOURCE = "fsl.train"
"""What messages name in place of a recipe file."""


@dataclass(frozen=True)
class ByHand(Experiment):
    """An experiment whose parts cannot be built again, because no recipe says how."""

    def fresh(self, task: TaskShape) -> Learner:
        shape = f"{task.n_way}-way {task.n_shot}-shot"
        raise ShapeError(
            f"{SOURCE}: this learner was made for one shape of task, and cannot be made again for "
            f"{shape}. A recipe, or another learner"
        )


class _OfParts(Recipe):
    """Stands for a recipe where a program gave the parts themselves, so that none has a name."""

    def resolved(self) -> dict[str, Any]:
        """The seed and the options, without a section of episodes, backbone or adapter."""
        names = ("outer", "execution", "evaluate")
        options = {name: getattr(self.sections, name).model_dump() for name in names}
        return {"seed": self.sections.seed, **options}


def by_hand(
    learner: Learner,
    source: EpisodeSource,
    weighting: TaskWeighting,
    device: torch.device,
    seed: int,
    execution: dict[str, Any],
    outer: dict[str, Any],
) -> Experiment:
    """The experiment of these parts.

    execution, outer: options of the recipe's sections with these names.
    Raises RecipeError, with every fault, for options that do not fit.
    """
    faults: list[str] = []
    sections = SimpleNamespace(
        seed=seed,
        outer=_checked(Outer, outer, faults),
        execution=_checked(ExecutionOptions, execution, faults),
        evaluate=Evaluate(),
        expect={},
    )
    if faults:
        raise RecipeError(faults)
    parts: dict[KeyPath, tuple[Kind, Any]] = {
        ("episodes",): ("episodes", source),
        ("backbone",): ("backbone", learner.backbone),
        ("adapter",): ("adapter", learner.adapter),
        ("outer", "weighting"): ("weighting", weighting),
    }
    if learner.hypergradient is not None:
        estimate = learner.hypergradient.to(device)
        parts["outer", "hypergradient"] = ("hypergradient", estimate)
    chosen = {path: _component(kind, part) for path, (kind, part) in parts.items()}
    recipe = _OfParts(Document(SOURCE, {}, {(): SOURCE}), sections, chosen)
    learner, weighting, source = learner.to(device), weighting.to(device), source.to(device)
    return ByHand(recipe, source, learner, weighting, source.task, device)


def _checked(model: type[Any], options: Mapping[str, Any], faults: list[str]) -> Any:
    try:
        return model(**options)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = ".".join(map(str, fault["loc"]))
            faults.append(f"{SOURCE}: {name}: found {fault['input']!r}. {fault['msg']}")
        return None


def _component(kind: Kind, part: Any) -> Component:
    name = getattr(part, "name", None)
    if not isinstance(name, str):
        name = type(part).__name__
    return Component(kind, name, type(part), type(part).__module__)

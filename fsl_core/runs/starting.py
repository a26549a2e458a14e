"""Weights of another run to start from: `start_from` of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsl_core.config.recipe import STORED, Recipe
from fsl_core.data.cache import tensors_digest
from fsl_core.errors import RecipeError, RunError
from fsl_core.files.paths import store_and_address
from fsl_core.learner import Learner
from fsl_core.runs.checkpoints import read_learner
from fsl_core.runs.files import RECIPE, START, Start, is_file, read_json, to_json, write_atomically
from fsl_core.runs.records import InDirectory

NAMED = 5
"""How many weights a note names; of further ones it says how many there are."""


def take_start(recipe: Recipe, learner: Learner) -> dict[str, Any] | None:
    """Give a learner the weights that the recipe starts from; None if it starts from none.

    A weight is taken if both learners have one of its name. Returns what was taken, and what was
    not, as start.json and the result hold it. RecipeError, naming it, for a weight of another
    shape or type here, or if no name is the same.
    """
    wanted = recipe.sections.start_from
    if wanted is None:
        return None
    where = recipe.document.where(("start_from",))
    run, store = wanted.run, recipe.chosen.get(STORED)
    if store:
        run = store.factory().fetch(store_and_address(run)[1])
    which = _checkpoint(run, wanted.checkpoint, where)
    offered, progress = read_learner(InDirectory(run).path(which))
    kept = {k: v for k, v in offered.items() if wanted.part == "all" or _of_backbone(k)}
    own = learner.state_dict()
    taken = {name: kept[name] for name in own if name in kept}
    if not taken:
        raise RecipeError(
            f"{where}: no weight of {wanted.run} has the name of one here, such as "
            f"{next(iter(own), 'none')}. A run with the same backbone"
        )
    for name, tensor in taken.items():
        _require_fit(name, tensor, own[name], f"{where}: {wanted.run}", wanted.part)
    learner.load_state_dict(taken, strict=False)
    return {
        "run": str(wanted.run if store else run.expanduser().absolute()),
        "part": wanted.part,
        "checkpoint": which,
        "step": progress["step"],
        "digest": tensors_digest(taken),
        "weights": len(taken),
        "left": [name for name in offered if name not in taken],
        "new": [name for name in own if name not in taken],
    }


def describe_start(start: Mapping[str, Any]) -> str:
    """What a run started from, in words."""
    where = f"{start['run']} ({start['checkpoint']} of step {start['step']})"
    told = f"starts from {start['weights']} weights of {where}"
    told += f"; left there: {_named(start['left'])}" if start["left"] else ""
    return told + (f"; new here: {_named(start['new'])}" if start["new"] else "")


def keep_start(directory: Path, start: Mapping[str, Any]) -> None:
    """Write start.json, or compare with it: RunError if the other run has changed since."""
    recorded = read_start(directory)
    if recorded is None:
        write_atomically(directory / START, to_json(start, START, indent=1) + "\n")
    elif recorded["digest"] != start["digest"]:
        raise RunError(
            f"{directory}: the weights of {start['run']} changed since this run began. "
            "That run as it was, or a new run"
        )


def read_start(directory: Path) -> dict[str, Any] | None:
    """What a run started from, if it started from another one."""
    return read_json(directory / START, Start) if is_file(directory / START) else None


def _checkpoint(run: Path, which: str | None, where: str) -> str:
    if not is_file(run / RECIPE):
        raise RecipeError(f"{where}: {run}: no run here ({RECIPE} is absent). A run's directory")
    for name in [which] if which else ["best", "last"]:
        if InDirectory(run).has(name):
            return name
    absent = f"no checkpoint{f' {which!r}' if which else ''}"
    raise RecipeError(f"{where}: {run}: {absent}. A run that has been trained")


def _of_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _require_fit(name: str, there: Tensor, here: Tensor, where: str, part: str) -> None:
    if there.shape != here.shape or there.dtype != here.dtype:
        fitting = "The options that it was trained with"
        if part == "all" and not _of_backbone(name):
            fitting += ", or `part: backbone`, which leaves the adapter's weights out"
        raise RecipeError(f"{where}: {name} is {_kind(there)}, and {_kind(here)} here. {fitting}")
    if not torch.isfinite(there).all():
        raise RecipeError(f"{where}: {name} is not finite. A run with finite weights")


def _kind(tensor: Tensor) -> str:
    kind = "" if tensor.dtype == torch.float32 else f" of {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return f"{', '.join(listed[:NAMED])}{more}"

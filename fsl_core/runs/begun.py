"""What a run began with: a recipe edited since then is noticed, and its steps may change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fsl_core.assembly.parts import build_part
from fsl_core.config.document import read_document
from fsl_core.config.matrix import recipe_digest
from fsl_core.config.recipe import Recipe
from fsl_core.config.yaml_text import to_yaml
from fsl_core.errors import RunError
from fsl_core.runs.files import (
    BEGUN,
    CONFUSION,
    EPISODES,
    RECIPE,
    RESULT,
    Record,
    StepsChange,
    Whole,
    is_file,
    read_json,
    to_json,
    write_atomically,
    writing,
)


class _Outer(Record):
    steps: Whole


class _Recipe(Record):
    outer: _Outer


class _Begun(Record):
    """What begun.json holds: the whole recipe, and how its steps changed."""

    recipe: _Recipe
    steps_changed: list[StepsChange] = Field(default_factory=list)


WITHOUT_EFFECT = ("requires", "expect")
"""Sections on which no number of a run depends."""


def write_recipe(directory: Path, recipe: Recipe, changes: list[dict[str, Any]]) -> None:
    """Keep the recipe of a run twice: as the file that is read, and as what it has to be.

    changes: of its steps, as `changes_of_steps` gives them.
    """
    resolved = recipe.resolved()
    kept = to_json({"recipe": resolved, "steps_changed": changes}, BEGUN, indent=2)
    write_atomically(directory / BEGUN, kept + "\n")
    write_atomically(directory / RECIPE, to_yaml(resolved))


def changes_of_steps(directory: Path) -> list[dict[str, Any]]:
    """`at` which step the steps changed `from` what `to` what, and what `differs` by it."""
    path = directory / BEGUN
    return read_json(path, _Begun).get("steps_changed", []) if is_file(path) else []


def refuse_edited(directory: Path, but_steps: bool = False) -> None:
    """Raise RunError, naming every change, if the run was trained with another recipe.yaml.

    but_steps: another number of steps is allowed.
    """
    now = read_document(directory / RECIPE).data
    found = dict(differences(_begun_with(directory, now), now))
    if but_steps:
        found.pop("outer.steps", None)
    if not found:
        return
    told = ", ".join(f"{key}: {change}" for key, change in found.items())
    steps = now.get("outer", {}).get("steps") if set(found) == {"outer.steps"} else None
    longer = f", or `fsl resume {directory} --steps {steps}`" if steps else ", or a new run"
    raise RunError(
        f"{directory / RECIPE}: changed since training began ({told}). The recipe as it was{longer}"
    )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str]]:
    """(key path, `old → new`) of what differs between two recipes, as plain data."""
    for key in dict.fromkeys((*before, *now)):
        if not path and key in WITHOUT_EFFECT:
            continue
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", f"{_shown(old)} → {_shown(new)}"


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _begun_with(directory: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The recipe of training.

    otherwise: what stands for it in a run of an earlier version.
    """
    path = directory / BEGUN
    return read_json(path, _Begun)["recipe"] if is_file(path) else otherwise


def change_steps(directory: Path, recipe: Recipe, done: int, follows_progress: bool) -> str:
    """Give a run another number of steps, that of `recipe`; returns what to tell the user.

    done:             steps done so far.
    follows_progress: whether its adapter changes with progress.

    What was written at the end of fewer steps is kept, as `result-<steps>.json` and so on.
    Raises RunError if more steps than these are done, or if the run belongs to a sweep.
    """
    steps = recipe.sections.outer.steps
    begun = _begun_with(directory, read_document(directory / RECIPE).data)
    before, changes = begun["outer"]["steps"], changes_of_steps(directory)
    if steps < done:
        raise RunError(f"--steps {steps}: {done} steps are done. {done} or more")
    if steps == before:
        write_recipe(directory, recipe, changes)
        return ""
    if directory.resolve().name.endswith(f"-{recipe_digest(begun)}"):
        raise RunError(
            f"{directory}: a run of a sweep, which finds it by its recipe. "
            f"`fsl sweep` with -s outer.steps={steps}"
        )
    change = {"at": done, "from": before, "to": steps}
    change["differs"] = list(_why_it_differs(recipe, done, before, follows_progress))
    _put_aside(directory, before)
    write_recipe(directory, recipe, [*changes, change] if done else changes)
    return describe_change(change) if done else ""


def describe_change(change: Mapping[str, Any]) -> str:
    """One change of a run's steps, in words."""
    text = f"steps changed at step {change['at']} from {change['from']} to {change['to']}"
    if not change["differs"]:
        return f"{text}; figures are those of a run of {change['to']} steps from the start"
    reasons = ", ".join(change["differs"])
    return f"{text}; figures differ from a run of {change['to']} steps from the start: {reasons}"


def _why_it_differs(
    recipe: Recipe, done: int, before: int, follows_progress: bool
) -> Iterator[str]:
    outer = recipe.sections.outer
    factor = build_part(recipe, ("outer", "schedule"))
    if any(factor(step, before) != factor(step, outer.steps) for step in range(done)):
        name = recipe.chosen["outer", "schedule"].name
        yield f"schedule {name} is stretched over {outer.steps} steps from here on"
    if follows_progress:
        name = recipe.chosen["adapter",].name
        yield f"adapter {name} is told progress (for warm-ups), which is stretched too"
    every = outer.validate_every
    if done == before and every and done % every:
        yield f"step {done}, then the last, was validated too and may be the best"


def _put_aside(directory: Path, steps: int) -> None:
    if (directory / RESULT).is_file():
        # The result is the first to go: without it the run is not finished.
        for name in (RESULT, EPISODES, CONFUSION, "report.html"):
            path = directory / name
            if path.is_file():
                with writing(path):
                    path.replace(path.with_name(f"{path.stem}-{steps}{path.suffix}"))

"""What the parts of a recipe are told of one another when they are built."""

from __future__ import annotations

from pathlib import Path

import pytest

import fsl_core as fsl_public
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RecipeError
from fsl_core.hooks.registry import Registry, load
from fsl_core.training.experiment import build_experiment

WEIGHTING = """
import fsl_core as fsl


class Told(fsl.TaskWeighting):
    name = "told"

    def __init__(self, columns, tasks, part: str = "adapter."):
        super().__init__()
        if not any(name.startswith(part) for name in columns):
            raise ValueError(f"told: part: {part!r}: no such parameter. One of {', '.join(columns)}")
        self.columns, self.tasks = columns, tasks


@fsl.hookimpl
def fsl_register_weightings(register):
    register(Told)
"""


@pytest.fixture
def registry(toy_recipe: Path) -> Registry:
    extra = toy_recipe.parent / "told.py"
    extra.write_text(WEIGHTING)
    return load(entry_points=False, files=[toy_recipe.parent / "fslplugin.py", extra])


def test_a_weighting_is_told_columns_and_tasks(toy_recipe: Path, registry: Registry):
    endless = read_recipe(toy_recipe, registry, ["outer.weighting={name: told, part: backbone.}"])
    experiment = build_experiment(endless)
    assert experiment.weighting.columns == fsl_public.gradient_columns(experiment.learner)
    assert experiment.weighting.columns
    assert experiment.weighting.tasks is None
    options = registry.get("weighting", "told").options.model_fields
    assert list(options) == ["name", "part"]


def test_the_number_of_tasks_is_the_sources(
    toy_recipe: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    recipe = read_recipe(toy_recipe, registry, ["outer.weighting={name: told, part: backbone.}"])
    monkeypatch.setattr(recipe.chosen["episodes",].factory, "tasks", 12)
    assert build_experiment(recipe).weighting.tasks == 12


def test_what_a_weighting_refuses_is_a_fault_of_the_recipe(toy_recipe: Path, registry: Registry):
    recipe = read_recipe(toy_recipe, registry, ["outer.weighting={name: told, part: head.}"])
    with pytest.raises(
        RecipeError,
        match=r"outer\.weighting: told: part: 'head\.': no such parameter\. One of backbone\.",
    ):
        build_experiment(recipe)

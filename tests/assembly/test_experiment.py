"""What the parts of a recipe are told of one another when they are built."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import fsl_core as fsl_public
from fsl_core.assembly.experiment import build_experiment
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded, load

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
def loaded(toy_recipe: Path) -> Loaded:
    extra = toy_recipe.parent / "told.py"
    extra.write_text(WEIGHTING)
    return load(entry_points=False, files=[toy_recipe.parent / "fslplugin.py", extra])


def test_a_weighting_is_told_columns_and_tasks(toy_recipe: Path, loaded: Loaded):
    endless = read_recipe(
        toy_recipe, loaded.catalogue, ["outer.weighting={name: told, part: backbone.}"]
    )
    experiment = build_experiment(endless)
    assert experiment.weighting.columns == fsl_public.gradient_columns(experiment.learner)
    assert experiment.weighting.columns
    assert experiment.weighting.tasks is None
    options = loaded.catalogue.get("weighting", "told").options.model_fields
    assert list(options) == ["name", "part"]


def test_the_number_of_tasks_is_the_sources(
    toy_recipe: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
):
    recipe = read_recipe(
        toy_recipe, loaded.catalogue, ["outer.weighting={name: told, part: backbone.}"]
    )
    monkeypatch.setattr(recipe.chosen["episodes",].factory, "tasks", 12)
    assert build_experiment(recipe).weighting.tasks == 12


def test_what_a_weighting_refuses_is_a_fault_of_the_recipe(toy_recipe: Path, loaded: Loaded):
    recipe = read_recipe(
        toy_recipe, loaded.catalogue, ["outer.weighting={name: told, part: head.}"]
    )
    with pytest.raises(
        RecipeError,
        match=r"outer\.weighting: told: part: 'head\.': no such parameter\. One of backbone\.",
    ):
        build_experiment(recipe)


class Named(nn.Module):
    """A backbone with these layers, and perhaps a word for its normalisation."""

    def __init__(self, *layers: nn.Module, norm: object = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm


@pytest.mark.parametrize(
    ("backbone", "norm"),
    [
        (Named(), "none"),
        (Named(nn.BatchNorm1d(4)), "BatchNorm1d"),
        (Named(fsl_public.replace_norms(nn.BatchNorm1d(4), "running")), "running"),
        (Named(fsl_public.Norm("group", 8), nn.LayerNorm(3)), "LayerNorm, group"),
        (Named(fsl_public.Norm("group", 8), norm="group"), "group"),
        (Named(nn.BatchNorm2d(4), norm="group"), "BatchNorm2d, group"),
        (Named(nn.BatchNorm2d(4), norm="none"), "BatchNorm2d"),
        (Named(nn.BatchNorm2d(4), norm="batchnorm"), "batchnorm"),
        (Named(fsl_public.Norm("none", 4), norm="none"), "none"),
        (Named(fsl_public.Norm("transductive", 4), norm=nn.Identity()), "transductive"),
    ],
)
def test_results_name_the_norm_of_the_layers(
    toy_recipe: Path, toy_plugins: Loaded, backbone: nn.Module, norm: str
):
    experiment = build_experiment(read_recipe(toy_recipe, toy_plugins.catalogue))
    experiment.learner.backbone = backbone
    assert experiment.norm == norm

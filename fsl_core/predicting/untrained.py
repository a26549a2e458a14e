"""Predictors without a run: a frozen network, labelled pictures, and an adapter that needs no
training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fsl_core.adapter import Adapter
from fsl_core.assembly.embedding import SIZE, recipe_of
from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.assembly.parts import build_part
from fsl_core.config.recipe import read_recipe
from fsl_core.config.yaml_text import to_yaml
from fsl_core.data.features import FrozenBackbone
from fsl_core.data.folders import find_class_folders
from fsl_core.data.vision import torchvision
from fsl_core.episode import LabelledSet
from fsl_core.errors import PluginError, RecipeError
from fsl_core.hooks.loader import Loaded
from fsl_core.learner import Learner
from fsl_core.nn.pretrained import PretrainedBackbone
from fsl_core.predicting.left_out import LeftOut, leave_one_out
from fsl_core.predicting.pictures import Labelled, find_labelled, read_labelled
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.text import printable, suggest

USUAL_SIZE = 224
"""Height and width in pixels that most pretrained networks want."""


@dataclass(frozen=True)
class Candidate:
    """An adapter that was tried on the labelled pictures, and what it made of them.

    section: as in a recipe.    left_out: None if every class has one picture.
    """

    section: dict[str, Any]
    left_out: LeftOut | None

    @property
    def title(self) -> str:
        """Such as `nearest-centroid distance=cosine`."""
        options = [f"{key}={value}" for key, value in self.section.items() if key != "name"]
        return " ".join([self.section["name"], *map(str, options)])

    @property
    def worth(self) -> tuple[float, float]:
        """Larger is better: accuracy of pictures left out, then their mean log-probability."""
        if self.left_out is None:
            return (0.0, 0.0)
        return (self.left_out.accuracy, -self.left_out.log_loss)


def network_section(
    name: str, weights: Path | None, loaded: Loaded, option: str = "--backbone"
) -> dict[str, Any]:
    """The section of a recipe for the backbone called `name`.

    name: a backbone, or a model of torchvision or timm, such as resnet18.
    weights: its file; None: what the backbone has by default.
    option: which named it.
    RecipeError for a name that nothing knows, with the nearest ones.
    """
    given = {} if weights is None else {"weights": str(weights.expanduser().absolute())}
    if name in loaded.catalogue.names("backbone"):
        return {"name": name, **given}
    known = torchvision().models.list_models(module=torchvision().models)
    if name in known:
        return {"name": "torchvision", "model": name, **given}
    try:
        loaded.catalogue.get("backbone", "timm")
    except PluginError as error:
        hint = suggest(name, [*known, *loaded.catalogue.names("backbone")])
        raise RecipeError(
            f"{option} {printable(name)}: neither a backbone nor a network of torchvision. "
            f"{hint}; for those of timm: {error}"
        ) from error
    return {"name": "timm", "model": name, **given}


def adapt_without_run(
    backbone: Mapping[str, Any],
    support: Path,
    loaded: Loaded,
    adapter: Mapping[str, Any] | None = None,
    invert: bool = False,
    device: torch.device | str = "cpu",
    skip_unreadable: bool = False,
) -> tuple[AdaptedPredictor, list[Candidate]]:
    """A predictor of a frozen backbone and labelled pictures, and the adapters that were tried.

    The best in predicting labelled pictures that were left out is taken; it comes first in the
    list. Of equally good ones it is the first in the order of their names.

    backbone: the section of a recipe.
    support:  holds one folder for each class.
    adapter:  the section of a recipe; None: every installed one that needs no training is tried.
    Raises DataError for pictures and RecipeError for options that do not fit.
    """
    find_labelled(support, skip_unreadable)  # before the network is fetched
    tried = [adapter] if adapter is not None else training_free(loaded)
    first = _experiment(backbone, tried[0], support, loaded, device)
    labelled = read_labelled(support, first.source, invert, skip_unreadable, unequal=True)
    predictors = [
        _predictor(_with_adapter(first, section, loaded), labelled, invert, loaded)
        for section in tried
    ]
    inputs = LabelledSet(predictors[0].inputs(labelled.images), predictors[0].labels.to(device))
    candidates = [
        Candidate(dict(section), leave_one_out(predictor.learner, inputs))
        for section, predictor in zip(tried, predictors, strict=True)
    ]
    order = sorted(range(len(tried)), key=lambda i: candidates[i].worth, reverse=True)
    return predictors[order[0]], [candidates[i] for i in order]


def training_free(loaded: Loaded) -> list[dict[str, Any]]:
    """Sections of the installed adapters that need no training, in the order of their names."""
    return [
        {"name": component.name, **options}
        for component in loaded.catalogue.components("adapter")
        for options in getattr(component.factory, "training_free", ())
    ]


def _experiment(
    backbone: Mapping[str, Any],
    adapter: Mapping[str, Any],
    support: Path,
    loaded: Loaded,
    device: torch.device | str,
) -> Experiment:
    """Of pictures in the size that the network wants."""
    classes = len(find_class_folders(support).paths) if support.is_dir() else 0

    def built(size: int) -> Experiment:
        folder = {"name": "image-folder", "root": str(support.absolute()), "image_size": size}
        episodes = {**folder, "n_way": max(classes, 2), "n_shot": 1, "n_query": 1}
        recipe = {**recipe_of(backbone, episodes), "adapter": dict(adapter)}
        return build_experiment(read_recipe(recipe, loaded.catalogue), device)

    experiment = built(USUAL_SIZE)
    network = experiment.learner.backbone
    assert isinstance(network, FrozenBackbone)  # as the recipe says
    inside = network.backbone
    wanted = inside.preprocess.size if isinstance(inside, PretrainedBackbone) else SIZE
    return experiment if wanted == USUAL_SIZE else built(wanted)


def _with_adapter(first: Experiment, adapter: Mapping[str, Any], loaded: Loaded) -> Experiment:
    """The same experiment with another adapter: its network is loaded once."""
    data = {**first.recipe.resolved(), "adapter": dict(adapter), "requires": []}
    recipe, network = read_recipe(data, loaded.catalogue), first.learner.backbone
    built: Adapter = build_part(recipe, ("adapter",), task=first.source.task, backbone=network)
    if not built.unequal_shots:
        raise RecipeError(
            f"--adapter {built.name}: takes as many pictures of each class, and without a run all "
            "are used. One for unequal numbers, such as nearest-centroid"
        )
    return replace(first, recipe=recipe, learner=Learner(network, built).to(first.device))


def _predictor(
    experiment: Experiment, labelled: Labelled, invert: bool, loaded: Loaded
) -> AdaptedPredictor:
    origin = {"recipe": to_yaml(experiment.recipe.resolved()), "plugin_files": loaded.files}
    return AdaptedPredictor(
        experiment,
        experiment.learner,
        labelled.images,
        labelled.classes,
        labelled.found,
        invert,
        origin,
        labelled.passed_over,
    )

"""The parts a recipe names, built and put together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import TypeVar

import torch
from torch import nn

from fsl_core.adapter import Adapter
from fsl_core.assembly.parts import build_part
from fsl_core.config.document import KeyPath
from fsl_core.config.recipe import Recipe
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone
from fsl_core.data.seeding import seed_torch
from fsl_core.data.source import EpisodeSource, Split
from fsl_core.engine.soundness import wrong_module
from fsl_core.episode import TaskShape
from fsl_core.errors import PluginError, RecipeError, ShapeError
from fsl_core.hypergradient import Hypergradient
from fsl_core.learner import Learner, gradient_columns
from fsl_core.nn.weights import LoadedWeights
from fsl_core.nn.norms import ITEM_BY_ITEM, NORM_POLICIES, Norm
from fsl_core.weighting import TaskWeighting

FOREIGN_ITEM_BY_ITEM = ("GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "LayerNorm", "RMSNorm")
HELD = ("fixed", "frozen")
"""What backbones with weights from elsewhere say of their norms; item by item, too."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Experiment:
    """What a recipe describes.

    test_task: shape of the evaluation episodes.
    device: where all of it computes.
    """

    recipe: Recipe
    source: EpisodeSource
    learner: Learner
    weighting: TaskWeighting
    test_task: TaskShape
    device: torch.device

    def test_learner(self) -> Learner:
        """The learner for test episodes."""
        return self.learner_for(self.test_task.n_way, self.test_task.n_shot)

    def learner_for(self, n_way: int, n_shot: int) -> Learner:
        """The learner itself, or a twin with the same weights for other numbers of ways or shots.

        Raises ShapeError if a weight has a size fixed by these numbers.
        """
        trained = self.source.task
        if (n_way, n_shot) == (trained.n_way, trained.n_shot):
            return self.learner
        output_dim = n_way if trained.kind == "classification" else trained.output_dim
        return self.twin(replace(trained, n_way=n_way, n_shot=n_shot, output_dim=output_dim))

    def twin(self, task: TaskShape) -> Learner:
        """Another learner with the same weights, built for this task. ShapeError as above."""
        twin = _twin(self.recipe, task, self.source.tasks, self.learner)
        if name := _misfit(self.learner, twin):
            raise ShapeError(_fixed(name, self.learner, self.source.task))
        twin.to(self.device).load_state_dict(self.learner.state_dict())
        return twin

    @property
    def norm(self) -> str:
        """The normalisation of the backbone, for result rows.

        This is the backbone's own word for it, or what its layers say.

        A policy of `Norm` as a word does not hide layers of another kind.
        """
        word = getattr(self.learner.backbone, "norm", None)
        if isinstance(word, str) and word not in NORM_POLICIES:
            return word
        layers = [m for m in self.learner.backbone.modules() if not list(m.children())]
        found: set[str] = {m.policy for m in layers if isinstance(m, Norm)}
        found |= {type(m).__name__ for m in layers if "Norm" in type(m).__name__} - {"Norm"}
        found |= {word} if isinstance(word, str) else set()
        return ", ".join(sorted(found - {"none"})) or "none"

    @property
    def weights(self) -> dict[str, dict[str, str]]:
        """`weights`: file, sha256 and how fitted, of a backbone that was filled from a file."""
        loaded = getattr(self.learner.backbone, "weights", None)
        if not isinstance(loaded, LoadedWeights):
            return {}
        return {"weights": {name: str(value) for name, value in asdict(loaded).items()}}

    @property
    def transductive(self) -> bool:
        """Whether a prediction may depend on which queries are predicted with it."""
        layers = self.norm.split(", ")
        alone = all(layer in (*ITEM_BY_ITEM, *FOREIGN_ITEM_BY_ITEM, *HELD) for layer in layers)
        return self.learner.adapter.transductive or not alone


def build_experiment(recipe: Recipe, device: torch.device | str = "cpu") -> Experiment:
    """Build every part; no image is read yet.

    Raises RecipeError if a constructor, or the parts together, refuse the options.
    """
    source: EpisodeSource = build_part(recipe, ("episodes",))
    _require_source(recipe, source)
    source = source.to(device)
    backbone = _build_backbone(recipe, source.task)
    if isinstance(backbone, FrozenBackbone):
        source = _frozen(recipe, lambda: FeatureEpisodes(source, backbone))
    learner = _build_learner(recipe, source.task, source.tasks, backbone)
    estimate = _build_hypergradient(recipe, learner.adapter, source).to(device)
    learner = Learner(learner.backbone, learner.adapter, estimate)
    weighting: TaskWeighting = build_part(
        recipe, ("outer", "weighting"), columns=gradient_columns(learner), tasks=source.tasks
    )
    _require_module(recipe, ("outer", "weighting"), weighting, TaskWeighting)
    test_task = _test_task(recipe, source.task)
    _check_ways(recipe, learner, source.task, test_task, source.tasks)
    _check_expectations(recipe, test_task)
    learner, weighting = learner.to(device), weighting.to(device)
    return Experiment(recipe, source, learner, weighting, test_task, torch.device(device))


def _build_backbone(recipe: Recipe, task: TaskShape) -> nn.Module:
    """The recipe's backbone, or that backbone frozen."""
    seed_torch(recipe.sections.seed, "initial weights")
    backbone: nn.Module = build_part(recipe, ("backbone",), task=task)
    _require_module(recipe, ("backbone",), backbone, nn.Module)
    _require_feature_dim(recipe, backbone)
    section = recipe.sections.backbone
    if not section.frozen:
        return backbone
    return _frozen(recipe, lambda: FrozenBackbone(backbone, task.input_shape, section.precision))


def _frozen(recipe: Recipe, make: Callable[[], Made]) -> Made:
    """What `frozen: true` makes. RecipeError, with the line of that key, if it is refused."""
    try:
        return make()
    except ValueError as error:
        where = recipe.document.where_built(("backbone", "frozen"))
        raise RecipeError(f"{where}: {error}") from error


def _build_learner(
    recipe: Recipe, task: TaskShape, tasks: int | None, backbone: nn.Module
) -> Learner:
    adapter: Adapter = build_part(recipe, ("adapter",), task=task, backbone=backbone, tasks=tasks)
    _require_module(recipe, ("adapter",), adapter, Adapter)
    return Learner(backbone, adapter)


def _twin(recipe: Recipe, task: TaskShape, tasks: int | None, learner: Learner) -> Learner:
    """A learner for another task, with start values; a frozen backbone serves any task."""
    backbone = learner.backbone
    if not isinstance(backbone, FrozenBackbone):
        backbone = _build_backbone(recipe, task)
    return _build_learner(recipe, task, tasks, backbone)


def _build_hypergradient(recipe: Recipe, adapter: Adapter, source: EpisodeSource) -> Hypergradient:
    """The recipe's, if it can drive this adapter; RecipeError, which says why, if not."""
    path: KeyPath = ("outer", "hypergradient")
    built: Hypergradient = build_part(
        recipe,
        path,
        task=source.task,
        tasks=source.tasks,
        meta_batch_size=recipe.sections.outer.meta_batch_size,
    )
    _require_module(recipe, path, built, Hypergradient)
    if reason := built.unfit(adapter):
        raise RecipeError(
            f"{recipe.document.where_built(path)}: {built.name}: {reason}. "
            "unrolled, or an adapter or options that fit"
        )
    return built


def _require_module(recipe: Recipe, path: KeyPath, module: object, kind: type[nn.Module]) -> None:
    if wrong := wrong_module(module, kind):
        raise PluginError(f"{recipe.named(path)}: {wrong}")


def _require_feature_dim(recipe: Recipe, backbone: nn.Module) -> None:
    size = getattr(backbone, "feature_dim", None)
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        found = "no attribute feature_dim" if size is None else f"feature_dim is {size!r}"
        raise PluginError(
            f"{recipe.named(('backbone',))}: {found}. self.feature_dim = the length of an item's "
            "feature vector, which sizes the heads of adapters"
        )


def _require_source(recipe: Recipe, source: object) -> None:
    wrong = ""
    if not isinstance(source, EpisodeSource):
        wrong = "not an EpisodeSource of fsl_core. A class derived from it"
    elif not isinstance(getattr(source, "task", None), TaskShape):
        wrong = "no attribute task. self.task = fsl_core.TaskShape(...) in its constructor"
    if wrong:
        raise PluginError(f"{recipe.named(('episodes',))}: {wrong}")


def _test_task(recipe: Recipe, task: TaskShape) -> TaskShape:
    wanted = recipe.sections.evaluate
    given = {key: getattr(wanted, key) for key in ("n_way", "n_shot", "n_query")}
    sizes = {key: size for key, size in given.items() if size is not None}
    if task.kind == "regression" and "n_way" in sizes:
        where = recipe.document.where(("evaluate", "n_way"))
        raise RecipeError(f"{where}: regression has no classes. Leave it out")
    test_task = replace(task, **sizes)
    if task.kind == "classification":
        test_task = replace(test_task, output_dim=test_task.n_way)
    return test_task


def _check_ways(
    recipe: Recipe, learner: Learner, task: TaskShape, test_task: TaskShape, tasks: int | None
) -> None:
    changed = [key for key in ("n_way", "n_shot") if getattr(task, key) != getattr(test_task, key)]
    if changed and (name := _misfit(learner, _twin(recipe, test_task, tasks, learner))):
        where = recipe.document.where(("evaluate", changed[0]))
        raise RecipeError(f"{where}: {_fixed(name, learner, task)}")


def _misfit(learner: Learner, twin: Learner) -> str | None:
    """The first weight of the learner that its twin lacks or has in another shape."""
    theirs = twin.state_dict()
    for name, tensor in learner.state_dict().items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            return name
    return None


def _fixed(name: str, learner: Learner, task: TaskShape) -> str:
    return (
        f"{name} of adapter {learner.adapter.name!r} has a size fixed by n_way {task.n_way} or "
        f"n_shot {task.n_shot}. The same numbers, or an adapter for any number of ways such as "
        "nearest-centroid"
    )


def _check_expectations(recipe: Recipe, task: TaskShape) -> None:
    for key in recipe.sections.expect:
        if not re.fullmatch(rf"{task.metric}(_after_\d+)?", key):
            where = recipe.document.where(("expect", key))
            raise RecipeError(
                f"{where}: no such result. Expected {task.metric}, or "
                f"{task.metric}_after_<inner steps>"
            )


def build_optimizer(recipe: Recipe, experiment: Experiment) -> torch.optim.Optimizer | None:
    """The outer loop's optimizer over all that is learned.

    None if nothing is learned and no step is made.
    Raises RecipeError if there are steps and nothing to train, or if it refuses its options.
    """
    learned = [p for p in experiment.learner.parameters() if p.requires_grad]
    if not learned:
        _require_no_steps(recipe)
        return None
    learned += [p for p in experiment.weighting.parameters() if p.requires_grad]
    return build_part(recipe, ("outer", "optimizer"), parameters=learned)


def _require_no_steps(recipe: Recipe) -> None:
    steps = recipe.sections.outer.steps
    if steps:
        parts = [f"{part} {recipe.chosen[part,].name!r}" for part in ("adapter", "backbone")]
        raise RecipeError(
            f"{recipe.document.where(('outer', 'steps'))}: {steps} steps with nothing to train: "
            f"{' and '.join(parts)} have no parameter that requires a gradient. "
            "A backbone that is trained, or outer.steps: 0 to evaluate this one as it is"
        )


def splits_in_use(experiment: Experiment) -> dict[Split, TaskShape]:
    """The splits that a run draws from, with the shape of their episodes."""
    outer = experiment.recipe.sections.outer
    wanted: dict[Split, TaskShape] = {"test": experiment.test_task}
    if outer.steps:
        wanted = {"train": experiment.source.task, **wanted}
    if outer.steps and outer.validate_every:
        wanted["validation"] = experiment.test_task
    return wanted


def check_data(experiment: Experiment) -> None:
    """Read the data of every split in use.

    Raises DataError, all faults together, if it cannot give the episodes.
    """
    experiment.source.check_splits(splits_in_use(experiment))

"""The parts a recipe names, built and put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from numbers import Integral
from typing import TypeVar

import torch
from torch import nn

from fsl_core.adapter import Adapter
from fsl_core.assembly.parts import build_part, build_source
from fsl_core.config.document import KeyPath
from fsl_core.config.recipe import Recipe
from fsl_core.config.sections import ON
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone
from fsl_core.data.seeding import seed_torch
from fsl_core.data.source import EpisodeSource, Split
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.soundness import wrong_module
from fsl_core.episode import TaskShape
from fsl_core.errors import DataError, PluginError, RecipeError, ShapeError, UnfitError
from fsl_core.hypergradient import Hypergradient
from fsl_core.learner import Learner, gradient_columns
from fsl_core.nn.norms import ITEM_BY_ITEM, NORM_POLICIES, Norm
from fsl_core.nn.weights import LoadedWeights
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
    further: other sources to judge on, by label; each has the shape of its own task.
    """

    recipe: Recipe
    source: EpisodeSource
    learner: Learner
    weighting: TaskWeighting
    test_task: TaskShape
    device: torch.device
    further: Mapping[str, EpisodeSource] = field(default_factory=dict)

    @cached_property
    def fitting(self) -> Fitting:
        """The learner for each shape of episodes, where ways or shots vary."""
        return Fitting(self.learner, self.source.task, self.fresh)

    def fitting_for(self, task: TaskShape) -> Fitting:
        """The same for episodes that are judged on."""
        return self.fitting if task.varies else Fitting(self.learner_for(task.n_way, task.n_shot))

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
        return self.twin(trained.of(n_way, n_shot))

    def twin(self, task: TaskShape) -> Learner:
        """Another learner with the same weights, built for this task. ShapeError as above."""
        twin = self.fresh(task)
        twin.load_state_dict(self.learner.state_dict())
        return twin

    def fresh(self, task: TaskShape) -> Learner:
        """Another learner, built for this task, that takes the same weights. ShapeError as above.

        What it holds means nothing yet.
        """
        fresh = _twin(self.recipe, task, self.source.tasks, self.learner)
        if name := _misfit(self.learner, fresh):
            raise ShapeError(_fixed(name, self.learner, self.source.task))
        return fresh.to(self.device)

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
    source = build_source(recipe, ("episodes",)).to(device)
    backbone = _build_backbone(recipe, source.task)
    source = _of_features(recipe, source, backbone)
    learner = _build_learner(recipe, source.task, source.tasks, backbone)
    estimate = _build_hypergradient(recipe, learner.adapter, source).to(device)
    learner = Learner(learner.backbone, learner.adapter, estimate)
    weighting: TaskWeighting = build_part(
        recipe, ("outer", "weighting"), columns=gradient_columns(learner), tasks=source.tasks
    )
    _require_module(recipe, ("outer", "weighting"), weighting, TaskWeighting)
    test_task = _test_task(recipe, source.task)
    _check_varying(recipe, ("episodes",), learner, source.task, source.tasks)
    _check_ways(recipe, learner, source.task, test_task, source.tasks)
    further = _further(recipe, learner, source)
    _check_expectations(recipe, test_task, further)
    learner, weighting = learner.to(device), weighting.to(device)
    further = {label: each.to(device) for label, each in further.items()}
    return Experiment(recipe, source, learner, weighting, test_task, torch.device(device), further)


def _further(recipe: Recipe, learner: Learner, trained: EpisodeSource) -> dict[str, EpisodeSource]:
    """The sources of `evaluate.on`. RecipeError for one whose tasks the learner cannot take."""
    task = trained.task
    found: dict[str, EpisodeSource] = {}
    for i, section in enumerate(recipe.sections.evaluate.on):
        path = (*ON, i)
        source = build_source(recipe, path)
        source = found[section.label] = _of_features(recipe, source, learner.backbone, further=True)
        where = recipe.document.where_built(path)
        theirs, ours = _what_backbones_take(source), _what_backbones_take(trained)
        for key, offered in theirs.items():
            if offered != ours[key]:
                raise RecipeError(
                    f"{where}: {source.name!r} has {key} {offered}, and the run is trained on "
                    f"{ours[key]}. A source that fits the backbone"
                )
        other = (source.task.n_way, source.task.n_shot) != (task.n_way, task.n_shot)
        if other and (name := _misfit(learner, _twin(recipe, source.task, trained.tasks, learner))):
            raise RecipeError(f"{where}: {_fixed(name, learner, task)}")
        _check_varying(recipe, path, learner, source.task, trained.tasks)
    return found


def _what_backbones_take(source: EpisodeSource) -> dict[str, object]:
    task, found = source.task, {"vocabulary": source.vocabulary}
    regressed = {"output_dim": task.output_dim} if task.kind == "regression" else {}
    return {"kind": task.kind, "input_shape": task.input_shape, **regressed, **found}


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


def _of_features(
    recipe: Recipe, source: EpisodeSource, backbone: nn.Module, further: bool = False
) -> EpisodeSource:
    """The source itself, or that of features if the backbone is frozen."""
    if not isinstance(backbone, FrozenBackbone):
        return source
    return _frozen(recipe, lambda: FeatureEpisodes(source, backbone, further))


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
    """The recipe's, if it can drive this adapter; UnfitError, which says why, if not."""
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
        raise UnfitError(
            f"{recipe.document.where_built(path)}: {built.name}: {reason}. "
            "unrolled, or an adapter or options that fit",
            reason,
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


def _test_task(recipe: Recipe, task: TaskShape) -> TaskShape:
    wanted = recipe.sections.evaluate
    given = {key: getattr(wanted, key) for key in ("n_way", "n_shot", "n_query")}
    sizes = {key: size for key, size in given.items() if size is not None}
    if task.kind == "regression" and "n_way" in sizes:
        where = recipe.document.where(("evaluate", "n_way"))
        raise RecipeError(f"{where}: regression has no classes. Leave it out")
    return task.of(**sizes)


def _check_varying(
    recipe: Recipe, path: KeyPath, learner: Learner, task: TaskShape, tasks: int | None
) -> None:
    """Raise RecipeError if the adapter does not take what varies in these episodes."""
    adapter, varies = learner.adapter, task.varies
    if varies.class_shots and not adapter.unequal_shots:
        raise RecipeError(
            f"{recipe.document.where((*path, 'sampling'))}: adapter {adapter.name!r} takes as "
            "many shots of each class (unequal_shots = False). sampling: episode, or an adapter "
            "such as nearest-centroid"
        )
    ranges = {key: getattr(varies, key) for key in ("n_way", "n_shot") if getattr(varies, key)}
    for key, (least, _) in ranges.items():
        if name := _misfit(learner, _twin(recipe, task.of(**{key: least}), tasks, learner)):
            where = recipe.document.where((*path, key))
            raise RecipeError(f"{where}: {_fixed(name, learner, task)}")


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


def _check_expectations(recipe: Recipe, task: TaskShape, further: Iterable[str]) -> None:
    labels = [f"{task.metric}_on_{label}" for label in further]
    for key in recipe.sections.expect:
        if not re.fullmatch(rf"{task.metric}(_after_\d+)?", key) and key not in labels:
            where = recipe.document.where(("expect", key))
            fitting = [task.metric, *labels, f"{task.metric}_after_<inner steps>"]
            told = f"{', '.join(fitting[:-1])}, or {fitting[-1]}"
            raise RecipeError(f"{where}: no such result. Expected {told}")


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
    checks = {"": (experiment.source, splits_in_use(experiment))}
    for label, source in experiment.further.items():
        checks[f"evaluate.on, {label}: "] = (source, {"test": source.task})
    faults: list[str] = []
    for where, (source, splits) in checks.items():
        try:
            source.check_splits(splits)
        except DataError as error:
            faults += [f"{where}{fault}" for fault in str(error).splitlines()]
    if faults:
        raise DataError("\n".join(faults))

"""Adapted predictors: from a trained run and class folders, or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.config.document import parse_document
from fsl_core.config.recipe import check_document
from fsl_core.errors import DataError, FslError, RunError, ShapeError
from fsl_core.files.paths import AnyPath
from fsl_core.hooks.loader import load
from fsl_core.hooks.trust import RecordedPlugins
from fsl_core.learner import Learner
from fsl_core.predicting.pictures import read_labelled, require_pictures
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.predicting.saved import read_saved
from fsl_core.runs.checkpoints import load_weights
from fsl_core.runs.files import RECIPE, by_path
from fsl_core.runs.opening import open_run
from fsl_core.runs.run import Run


def _tell_nobody(text: str) -> None:
    """The default of `tell`."""


def adapt_to_folder(
    directory: AnyPath,
    support: AnyPath,
    invert: bool = False,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
    no_plugin: Iterable[str] = (),
    skip_unreadable: bool = False,
    plugins: Iterable[AnyPath] = (),
    trust_plugins: bool = False,
    tell: Callable[[str], None] = _tell_nobody,
) -> AdaptedPredictor:
    """A trained run with the labelled pictures of a folder.

    All of them are used. If classes have unequal numbers of pictures and the adapter does not take
    `unequal_shots`, the first of each are used, as many as the smallest class has. One-file plugins
    that the run names are imported if you have run them before; otherwise PluginError is raised.

    directory: of the run.
    support: holds one folder for each class. Classes are sorted by name.
    invert: exchange light and dark in all pictures.
    checkpoint: best or last; default: as in the recipe.
    skip_unreadable: take the next picture in place of one that cannot be read, and name it in
        `passed_over`.
    plugins: one-file plugins to import; one with the name of a file that the run names replaces it.
    trust_plugins: import what the run names, known or not.
    tell: is told of each such import.
    Raises DataError if the folders do not fit, RunError if there is no trained run or it does not
    take pictures.
    """
    with open_run(
        Path(directory),
        torch.device(device),
        write=False,
        no_plugin=no_plugin,
        plugins=[Path(file) for file in plugins],
        trust_plugins=trust_plugins,
        tell=tell,
    ) as run:
        run.restore_for_evaluation(checkpoint)
        return _adapt_run(run, Path(support), invert, skip_unreadable)


def _adapt_run(run: Run, support: Path, invert: bool, skip_unreadable: bool) -> AdaptedPredictor:
    experiment = run.experiment
    require_pictures(run.folder, experiment.source.item_task)
    unequal = experiment.learner.adapter.unequal_shots
    labelled = read_labelled(support, experiment.source, invert, skip_unreadable, unequal)
    try:
        learner = _learner_for(experiment, labelled.shots)
    except ShapeError as error:
        told = " or ".join(map(str, sorted(set(labelled.shots))))
        raise DataError(f"{support}: {len(labelled.shots)} classes of {told}: {error}") from error
    recipe = (run.folder / RECIPE).read_text(encoding="utf-8")
    origin = {"recipe": recipe, "plugin_files": run.plugin_files}
    return AdaptedPredictor(
        experiment,
        learner,
        labelled.images,
        labelled.classes,
        labelled.found,
        invert,
        origin,
        labelled.passed_over,
    )


def _learner_for(experiment: Experiment, shots: tuple[int, ...]) -> Learner:
    """The learner for classes of so many pictures. ShapeError if there is none."""
    trained, adapter = experiment.source.task.n_shot, experiment.learner.adapter
    if not adapter.unequal_shots and len(set(shots)) > 1:
        raise ShapeError(f"adapter {adapter.name!r} takes as many shots of each class")
    return experiment.learner_for(len(shots), trained if adapter.unequal_shots else shots[0])


def load_predictor(
    path: AnyPath,
    device: torch.device | str = "cpu",
    no_plugin: Iterable[str] = (),
    plugins: Iterable[AnyPath] = (),
    trust_plugins: bool = False,
    tell: Callable[[str], None] = _tell_nobody,
) -> AdaptedPredictor:
    """What `AdaptedPredictor.save` wrote.

    One-file plugins that it names are imported if you have run them before; otherwise PluginError
    is raised.

    plugins, trust_plugins, tell: as for `adapt_to_folder`.
    Raises RunError if the file is damaged or another one, RecipeError if a plugin is absent.
    """
    file = Path(path)
    saved = read_saved(file)
    record = saved.record
    recorded = RecordedPlugins(str(file), by_path(record["plugin_files"]), trust_plugins, tell)
    loaded = load(
        files=[Path(plugin) for plugin in plugins], recorded=recorded, no_plugin=no_plugin
    )
    document = parse_document(record["recipe"], f"{file}: recipe")
    try:
        experiment = build_experiment(check_document(document, loaded.catalogue), device)
    except FslError as error:
        raise RunError(str(error)) from error
    classes, task = tuple(record["classes"]), experiment.source.item_task
    require_pictures(file, task)
    learner = _learner_for(experiment, saved.shots_of(file, task))
    try:
        load_weights(learner, saved.weights)
    except ValueError as error:
        raise RunError(
            f"{file}: its weights do not fit the plugins installed: {error}. "
            "Their versions at the time of --save"
        ) from error
    origin = {"recipe": record["recipe"], "plugin_files": loaded.files}
    found = tuple(record["found"])
    return AdaptedPredictor(
        experiment, learner, saved.images, classes, found, record["invert"], origin
    )

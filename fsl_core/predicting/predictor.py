"""Your pictures: a trained run adapted to class folders, and what it says about other pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.config.document import parse_document
from fsl_core.config.recipe import check_document
from fsl_core.data import folders
from fsl_core.data.folders import PassedOver, nfc
from fsl_core.data.seeding import seed_torch
from fsl_core.data.vision import decode_images
from fsl_core.episode import Episode, LabelledSet, Predictor, TaskShape
from fsl_core.errors import DataError, FslError, RunError, ShapeError
from fsl_core.files.writing import write_file
from fsl_core.hooks.loader import load
from fsl_core.hooks.trust import RecordedPlugins
from fsl_core.learner import Learner
from fsl_core.runs.checkpoints import load_weights, read_tensors, save_tensors
from fsl_core.runs.files import (
    RECIPE,
    PluginFiles,
    Record,
    Whole,
    by_path,
    check_record,
    load_json,
    refuse_name,
    to_json,
    writing,
)
from fsl_core.runs.run import Run, open_run
from fsl_core.text import printable

TOGETHER = 256
"""Normalisations under which a picture's prediction does not depend on the other pictures."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to predict.

    images: (n, channels, size, size) uint8.    names: of their files, relative to their folder.
    labels: the right class of each, where they lie in class folders, else None.
    skipped: names and reasons of those that could not be read; None where one such is an error.
    passed_over: what else lies in the folder.
    """

    images: Tensor
    names: list[str]
    labels: list[str] | None
    skipped: list[tuple[str, str]] | None = None
    passed_over: Sequence[PassedOver] = ()


@dataclass(frozen=True)
class AdaptedPredictor:
    """A trained learner and the labelled pictures that it adapts to.

    images: (n_way * n_shot, channels, size, size) uint8, sorted by class.    classes: their names.
    found:  labelled pictures in each class folder; of each the first n_shot are used.
    invert: pictures are read with light and dark exchanged.
    origin: what a file needs to build the learner again: the text of the recipe, plugin files.
    passed_over: what else lies in the class folders, and labelled pictures left out as unreadable.
    """

    experiment: Experiment
    learner: Learner
    images: Tensor
    classes: tuple[str, ...]
    found: tuple[int, ...]
    invert: bool
    origin: dict[str, Any]
    passed_over: Sequence[PassedOver] = ()

    @property
    def n_shot(self) -> int:
        return len(self.images) // len(self.classes)

    @property
    def together(self) -> bool:
        """Whether a prediction depends on which pictures are predicted with it."""
        return self.experiment.transductive

    def read(self, folder: Path, skip_unreadable: bool = False) -> Pictures:
        """The pictures of a folder and below; with labels where folders have the names of classes.

        skip_unreadable: leave out pictures that cannot be read; they are in `skipped`.
        Raises DataError if there are none, some are unreadable, or only some folders have the name
        of a class.
        """
        found = _find(folder, skip_unreadable)
        if not found.paths:
            raise DataError(
                f"{printable(folder)}: no pictures. At least one file such as .jpg or .png"
            )
        class_of = self._class_of(found.paths, folder)
        files, images, damaged = _decode(found.paths, self.experiment, self.invert)
        if not skip_unreadable or not files:
            _refuse(damaged, len(found.paths))
        return Pictures(
            images,
            [file.relative_to(folder).as_posix() for file in files],
            [class_of[file] for file in files] if class_of else None,
            [(item.path.relative_to(folder).as_posix(), item.detail) for item in damaged]
            if skip_unreadable
            else None,
            found.passed_over,
        )

    def _class_of(self, files: Sequence[Path], folder: Path) -> dict[Path, str]:
        """The class of each file by the name of its folder; empty where none is a class."""
        classes = {nfc(name): name for name in self.classes}
        tops = {file: file.relative_to(folder).parts[:-1][:1] for file in files}
        known = {
            file: classes[nfc(top[0])]
            for file, top in tops.items()
            if top and nfc(top[0]) in classes
        }
        if known and len(known) < len(files):
            other = next(top for file, top in tops.items() if file not in known)
            what = (
                f"a folder {other[0]!r}, which is not a class"
                if other
                else "pictures outside of class folders"
            )
            fit = f"Only folders of {printable(', '.join(self.classes))}, or pictures alone"
            raise DataError(f"{printable(folder)}: class folders and {what}. {fit}")
        return known

    def probabilities(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) uint8 -> (n, n_way) probabilities of the classes, on the CPU."""
        x = self._scaled(images)
        with torch.no_grad():
            predict = self.predictor(x)
            parts = x.split(len(x) if self.together else TOGETHER)
            found = torch.cat([predict(part).softmax(-1) for part in parts]).cpu()
        wrong = (~found.isfinite()).any(-1).sum().item()
        if wrong:
            raise RunError(
                f"predict: probabilities of {wrong} of {len(found)} pictures are not finite. "
                "Other labelled pictures, or a run with smaller steps"
            )
        return found

    def predictor(self, x: Tensor) -> Predictor:
        """Adapt, always in the same way; x is what a transductive adapter sees of the pictures, values 0 .. 1."""
        self.learner.eval()
        seed_torch("prediction", self.experiment.recipe.sections.seed)
        y = torch.arange(len(self.classes), device=x.device).repeat_interleave(self.n_shot)
        query = LabelledSet(x, x.new_zeros(len(x)))
        return self.learner.adapt(
            Episode(
                LabelledSet(self._scaled(self.images), y), query, torch.tensor(0, device=x.device)
            )
        )

    def _scaled(self, images: Tensor) -> Tensor:
        device = self.experiment.device
        return images.to(device).float() / torch.tensor(255.0, device=device)

    def save(self, path: Path) -> None:
        """Write one file that needs no run directory: weights, labelled pictures, recipe. Plugins are named, not kept."""
        refuse_name(path)
        tensors = {f"learner.{name}": t for name, t in self.learner.state_dict().items()}
        record = {
            "classes": self.classes,
            "found": self.found,
            "invert": self.invert,
            **self.origin,
        }
        with writing(path):
            save_tensors(
                path,
                {**tensors, "support": self.images},
                {"fsl-predictor": to_json(record, path)},
            )

    def export(self, path: Path, images: Tensor) -> float:
        """Write the adapted predictor alone with torch.export: (n, channels, size, size) values 0 .. 1 -> (n, n_way).

        images: uint8, to compare on. Returns the largest difference of the file's probabilities from those here; RunError
        where the predictor cannot be exported or it exceeds 1e-4.
        """
        if path.suffix != ".pt2":
            raise RunError(f"{path}: ends in {path.suffix or 'nothing'}. torch.export writes .pt2")
        x = self._scaled(
            images.repeat(2, 1, 1, 1)
        )  # torch.export takes one row to mean one row always
        refuse_name(path)
        where = f"{path}: adapter {self.learner.adapter.name!r}"
        if self.learner.adapter.transductive:
            raise RunError(f"{where} adapts to the pictures it predicts. --save, which adapts anew")
        with torch.no_grad(), warnings.catch_warnings():
            module = _Exportable(self.learner, self.predictor(x)).eval()
            if self.learner.takes_gradients:  # torch.export warns that it detaches what has a graph
                warnings.simplefilter("ignore")
            try:
                program = torch.export.export(
                    module, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},), strict=False
                )
                difference = float(
                    (program.module()(x[: len(images)]) - module(x[: len(images)])).abs().max()
                )
            except Exception as error:  # torch.export fails in many ways
                reason = " ".join(str(error).split())[:200]
                raise RunError(
                    f"{where} cannot be exported ({reason}). --save, which keeps what it adapts from"
                ) from error
        if not difference <= 1e-4:
            raise RunError(
                f"{where}: the exported probabilities differ by {difference:.1e}. --save, which adapts anew"
            )
        content = io.BytesIO()  # torch.export names no reason where there is no room on a disk
        torch.export.save(program, content)
        with writing(path):
            write_file(path, content.getvalue())
        return difference


class _Exportable(nn.Module):
    def __init__(self, learner: Learner, predict: Predictor):
        super().__init__()
        self.learner, self.predict = learner, predict

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x).softmax(-1)


def adapt_to_folder(
    directory: Path,
    support: Path,
    invert: bool = False,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
    no_plugin: Iterable[str] = (),
    skip_unreadable: bool = False,
    plugins: Iterable[Path] = (),
    trust_plugins: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> AdaptedPredictor:
    """A trained run with the labelled pictures of `support`: one folder for each class, sorted by name.

    Where classes have unequal numbers of pictures, the first of each are used, as many as the smallest class has.
    checkpoint: best or last; default: as in the recipe.    invert: exchange light and dark in all pictures.
    skip_unreadable: take the next picture in place of one that cannot be read, and name it in
        `passed_over`.
    One-file plugins that the run names are imported where you have run them before; else
    PluginError.
    plugins: one-file plugins to import; one with the name of a file that the run names replaces it.
    trust_plugins: import what the run names, known or not.    tell: is told of each such import.
    Raises DataError if the folders do not fit, RunError if there is no trained run or it does not take pictures.
    """
    with open_run(
        directory,
        torch.device(device),
        write=False,
        no_plugin=no_plugin,
        plugins=plugins,
        trust_plugins=trust_plugins,
        tell=tell,
    ) as run:
        run.restore_for_evaluation(checkpoint)
        return _adapt_run(run, support, invert, skip_unreadable)


def _adapt_run(run: Run, support: Path, invert: bool, skip_unreadable: bool) -> AdaptedPredictor:
    experiment = run.experiment
    _require_pictures(run.directory, experiment.source.task)
    classes, passed_over = _labelled(support, skip_unreadable)
    if skip_unreadable:  # only then every picture is decoded, to know how many of a class can be
        classes, damaged = _readable(classes, experiment)
        passed_over += damaged
    n_shot = min(map(len, classes.values()))
    used = [file for files in classes.values() for file in files[:n_shot]]
    _, images, damaged = _decode(used, experiment, invert)
    _refuse(damaged, len(used))
    try:
        learner = experiment.learner_for(len(classes), n_shot)
    except ShapeError as error:
        raise DataError(f"{support}: {len(classes)} classes of {n_shot}: {error}") from error
    recipe = (run.directory / RECIPE).read_text(encoding="utf-8")
    origin = {"recipe": recipe, "plugin_files": run.plugin_files}
    found = tuple(map(len, classes.values()))
    return AdaptedPredictor(
        experiment,
        learner,
        images,
        tuple(classes),
        found,
        invert,
        origin,
        passed_over,
    )


class _Saved(Record):
    """What `AdaptedPredictor.save` writes beside the tensors."""

    classes: Annotated[list[str], Field(min_length=2)]
    found: list[Whole]
    invert: bool
    recipe: str
    plugin_files: PluginFiles


def load_predictor(
    path: Path,
    device: torch.device | str = "cpu",
    no_plugin: Iterable[str] = (),
    plugins: Iterable[Path] = (),
    trust_plugins: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> AdaptedPredictor:
    """What `AdaptedPredictor.save` wrote. RunError if it is damaged or no such file; RecipeError if a plugin is absent.

    One-file plugins that it names are imported where you have run them before; else PluginError.
    plugins, trust_plugins, tell: as for `adapt_to_folder`.
    """
    refuse_name(path)
    tensors, record = _read_saved(path)
    recorded = RecordedPlugins(str(path), by_path(record["plugin_files"]), trust_plugins, tell)
    loaded = load(files=plugins, recorded=recorded, no_plugin=no_plugin)
    document = parse_document(record["recipe"], f"{path}: recipe")
    try:
        experiment = build_experiment(check_document(document, loaded.catalogue), device)
    except FslError as error:
        raise RunError(str(error)) from error
    images, classes = tensors.pop("support"), tuple(record["classes"])
    task = experiment.source.task
    _require_pictures(path, task)
    shots, rest = divmod(len(images), len(classes))
    if images.dtype != torch.uint8 or images.shape[1:] != tuple(task.input_shape) or rest:
        raise RunError(
            f"{path}: labelled pictures of {images.dtype}, shape {tuple(images.shape)}, which are "
            f"not {len(classes)} times as many of its recipe. A file of `fsl predict --save`"
        )
    learner = experiment.learner_for(len(classes), shots)
    try:
        load_weights(learner, {n.removeprefix("learner."): t for n, t in tensors.items()})
    except ValueError as error:
        raise RunError(
            f"{path}: its weights do not fit the plugins installed: {error}. "
            "Their versions at the time of --save"
        ) from error
    origin = {"recipe": record["recipe"], "plugin_files": loaded.files}
    return AdaptedPredictor(
        experiment, learner, images, classes, tuple(record["found"]), record["invert"], origin
    )


def _read_saved(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = read_tensors(path)
        record = check_record(load_json(metadata["fsl-predictor"]), _Saved)
        if len(record["found"]) != len(record["classes"]):
            raise ValueError("'found' is not one number for each class")
        if tensors["support"].dim() != 4 or not len(tensors["support"]):
            raise ValueError("'support' holds no pictures")
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise RunError(
            f"{path}: not a whole file of `fsl predict --save` ({reason}). "
            "Such a file, or a run directory"
        ) from error
    return tensors, record


def _require_pictures(where: Path, task: TaskShape) -> None:
    shape = tuple(task.input_shape)
    if (
        task.kind != "classification"
        or len(shape) != 3
        or shape[0] not in (1, 3)
        or shape[1] != shape[2]
    ):
        raise RunError(
            f"{where}: a run of {task.kind} with items of shape {shape}. A run that classifies square pictures"
        )


def _labelled(
    support: Path, skip_unreadable: bool
) -> tuple[dict[str, list[Path]], list[PassedOver]]:
    """The pictures of each class folder, and what lies beside them."""
    folders.require_folder(support, f"{printable(support)}:", "A folder of pictures")
    found = folders.find_class_folders(support)
    if len(found.paths) < 2:
        raise DataError(
            f"{printable(support)}: {len(found.paths)} class folders. "
            "At least two folders of pictures, with the names of their classes"
        )
    of_class = {folder: folders.find_pictures(folder) for folder in found.paths}
    passed_over = [
        *found.passed_over,
        *(item for pictures in of_class.values() for item in pictures.passed_over),
    ]
    if not skip_unreadable:
        _refuse(folders.unreadable(passed_over), 0)
    empty = [
        folders.no_pictures(folder, pictures.passed_over)
        for folder, pictures in of_class.items()
        if not pictures.paths
    ]
    if empty:
        raise DataError("\n".join(empty))
    return {folder.name: pictures.paths for folder, pictures in of_class.items()}, passed_over


def _readable(
    classes: dict[str, list[Path]], experiment: Experiment
) -> tuple[dict[str, list[Path]], list[PassedOver]]:
    """The pictures of each class that can be read, and the others. DataError for an empty class."""
    readable, unreadable = {}, []
    for name, files in classes.items():
        readable[name], _, damaged = _decode(files, experiment, invert=False)
        if not readable[name]:
            _refuse(damaged, len(files))
        unreadable += damaged
    return readable, unreadable


def _find(folder: Path, skip_unreadable: bool) -> folders.Found:
    folders.require_folder(folder, f"{printable(folder)}:", "A folder of pictures")
    found = folders.find_pictures(folder)
    unreadable = folders.unreadable(found.passed_over)
    if not skip_unreadable or any(item.path == folder for item in unreadable):
        _refuse(unreadable, 0)
    return found


def _decode(
    files: Iterable[Path], experiment: Experiment, invert: bool
) -> tuple[list[Path], Tensor, list[PassedOver]]:
    """The files that can be read, (n, channels, size, size) uint8 of these, and the others."""
    files, source = list(files), experiment.source
    images, faults = decode_images(files, source.decode, source.task.input_shape)
    kept = [i for i in range(len(files)) if i not in faults]
    images = images[kept]
    damaged = [folders.as_unreadable(files[i], error) for i, error in faults.items()]
    return [files[i] for i in kept], 255 - images if invert else images, damaged


def _refuse(unreadable: Sequence[PassedOver], of: int) -> None:
    fit = "Whole image files, or --skip-unreadable, which leaves them out"
    folders.refuse_unreadable(unreadable, of, fit)

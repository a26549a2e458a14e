"""A trained learner with the labelled pictures that it adapts to: what it says about others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsl_core.assembly.experiment import Experiment
from fsl_core.data.features import FrozenBackbone, embed_images
from fsl_core.data.folders import PassedOver
from fsl_core.data.seeding import seed_torch
from fsl_core.data.work import each
from fsl_core.episode import Episode, LabelledSet, Predictor
from fsl_core.errors import RunError
from fsl_core.files.paths import AnyPath
from fsl_core.learner import Learner
from fsl_core.nn.attention import plain_attention
from fsl_core.nn.norms import support_reference
from fsl_core.predicting.exporting import Probabilities, check_exportable, write_program
from fsl_core.predicting.pictures import Pictures, read_pictures
from fsl_core.predicting.saved import shots_of, write_saved

TOGETHER = 256
"""Pictures predicted at a time, if a prediction does not depend on the other pictures."""


@dataclass(frozen=True)
class AdaptedPredictor:
    """A trained learner and the labelled pictures that it adapts to.

    images: (n, channels, size, size) uint8, sorted by class: all labelled pictures, or as many of
        each class if the adapter does not take unequal_shots.
    classes: their names.
    found: labelled pictures in each class folder.
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
    def shots(self) -> tuple[int, ...]:
        """Labelled pictures of each class that it adapts to, the first of each folder."""
        return shots_of(len(self.images), self.found)

    @property
    def labels(self) -> Tensor:
        """(len(images),) int64: which of the classes each labelled picture is of."""
        return torch.arange(len(self.classes)).repeat_interleave(torch.tensor(self.shots))

    @property
    def together(self) -> bool:
        """Whether a prediction depends on which pictures are predicted with it."""
        return self.experiment.transductive

    def read(self, folder: AnyPath, skip_unreadable: bool = False) -> Pictures:
        """The pictures of a folder and below; with labels if folders have the names of classes.

        folder: or one picture file.
        skip_unreadable: leave out pictures that cannot be read; they are in `skipped`.
        Raises DataError if there are none, some are unreadable, or only some folders have the name
        of a class.
        """
        source = self.experiment.source
        return read_pictures(Path(folder), self.classes, source, self.invert, skip_unreadable)

    def probabilities(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) uint8 -> (n, n_way) probabilities of classes, on the CPU."""
        parts = images.split(len(images) if self.together else TOGETHER)
        with torch.no_grad():
            predict = self.predictor(self.inputs(parts[0]))
            each_part = each(parts, "predicting pictures")
            found = torch.cat([predict(self.inputs(part)).softmax(-1).cpu() for part in each_part])
        wrong = (~found.isfinite()).any(-1).sum().item()
        if wrong:
            raise RunError(
                f"predict: probabilities of {wrong} of {len(found)} pictures are not finite. "
                "Other labelled pictures, or a run with smaller steps"
            )
        return found

    def nearest(self, images: Tensor, count: int) -> Tensor:
        """(n, channels, size, size) uint8 -> (n, count): which labelled pictures are most alike.

        Rows of `images` of this predictor, the nearest first, by the cosine of the backbone's
        features as they are before adaptation. Fewer if there are fewer.
        """
        support = self.inputs(self.images)
        with torch.no_grad(), support_reference(support), plain_attention():
            self.learner.eval()
            known = _directions(self.learner.backbone(support))
            parts = images.split(TOGETHER)
            alike = [
                _directions(self.learner.backbone(self.inputs(part))) @ known.T for part in parts
            ]
        found = torch.cat(alike).sort(dim=-1, descending=True, stable=True).indices
        return found[:, :count].cpu()

    def predictor(self, x: Tensor) -> Predictor:
        """Adapt, always in the same way.

        x: what a transductive adapter sees of the pictures, as `inputs` gives it.
        """
        self.learner.eval()
        # An adapter may draw random numbers. With this seed a saved predictor draws the same.
        seed_torch("prediction", self.experiment.recipe.sections.seed)
        support = LabelledSet(self.inputs(self.images), self.labels.to(x.device))
        unlabelled = LabelledSet(x, x.new_zeros(len(x)))
        return self.learner.adapt(Episode(support, unlabelled, torch.tensor(0, device=x.device)))

    def inputs(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) uint8 -> what the learner takes.

        Values 0 .. 1, or the features of a frozen backbone, which are kept on disk.
        """
        backbone, device = self.learner.backbone, self.experiment.device
        if isinstance(backbone, FrozenBackbone):
            return embed_images(backbone, images).to(device)
        return self._scaled(images)

    def _scaled(self, images: Tensor) -> Tensor:
        device = self.experiment.device
        return images.to(device).float() / torch.tensor(255.0, device=device)

    def save(self, path: AnyPath) -> None:
        """Write one file that needs no run directory: weights, labelled pictures, recipe.

        Plugins are named in it, not kept.
        """
        record = {"classes": self.classes, "found": self.found, "invert": self.invert}
        write_saved(Path(path), self.learner.state_dict(), self.images, {**record, **self.origin})

    def export(self, path: AnyPath, images: Tensor) -> float:
        """Write the adapted predictor alone, by torch.export (`.pt2`) or as ONNX (`.onnx`).

        It maps (n, channels, size, size), values 0 .. 1, to (n, n_way).

        images: uint8, to compare on; 256 of them are enough.
        Returns the largest difference of the file's probabilities from those here.
        Raises RunError if the predictor cannot be exported or the difference exceeds 1e-4.
        """
        file, images = Path(path), images[:TOGETHER]
        check_exportable(file, self.learner)
        x = self._scaled(images.repeat(2, 1, 1, 1))
        with torch.no_grad():
            module = Probabilities(self.learner, self.predictor(x)).eval()
        return write_program(file, module, x, len(images))


def _directions(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.flatten(1), dim=-1)

"""Predictions of your pictures: a table for machines, a sheet to look at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fsl_core.predicting.pictures import Pictures
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.reporting.mosaics import png
from fsl_core.reporting.pages import write_page
from fsl_core.reporting.spreadsheets import CsvWriter

THUMBNAIL = 96
SHOWN_CLASSES = 5
NEAREST = 3
"""Labelled pictures shown beside a prediction."""


@dataclass(frozen=True)
class Predictions:
    """What a predictor says about pictures.

    probabilities: (n, n_way), each row summing to 1.
    """

    predictor: AdaptedPredictor
    pictures: Pictures
    probabilities: Tensor

    @cached_property
    def predicted(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.predictor.classes[i] for i in self.probabilities.argmax(-1).tolist()]

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, if the right classes are known."""
        labels = self.pictures.labels
        if not labels:
            return None
        return sum(map(str.__eq__, labels, self.predicted)) / len(labels)

    def to_csv(self, raw: bool = False) -> str:
        """A row for each picture: file, predicted class, (right class,) and `p_<class>`s.

        `p_<class>` is the probability of that class. If unreadable pictures are skipped, there is
        a column `note`, and at the end a row for each of them, with the reason and no prediction.

        raw: names as they are, even if a spreadsheet would compute them.
        """
        pictures, classes = self.pictures, self.predictor.classes
        known = [[label] for label in pictures.labels or ()]
        table = io.StringIO()
        writer = CsvWriter(table, raw)
        note = [] if pictures.skipped is None else ["note"]
        right = ["class"] if known else []
        writer.writerow(["file", "predicted", *right, *(f"p_{name}" for name in classes), *note])
        for i, (name, predicted, row) in enumerate(
            zip(pictures.names, self.predicted, self.probabilities, strict=True)
        ):
            label, figures = known[i] if known else [], [f"{p:.6f}" for p in row.tolist()]
            writer.writerow([name, predicted, *label, *figures, *("" for _ in note)])
        for name, why in pictures.skipped or ():
            empty = [""] * (1 + len(right) + len(classes))
            writer.writerow([name, *empty, why])
        return table.getvalue()

    def write_html(self, path: Path) -> None:
        """Write a page that fetches nothing.

        It shows every picture as the model sees it, with its likeliest classes.
        """
        write_page(
            path,
            "predictions.html",
            predictor=self.predictor,
            accuracy=self.accuracy,
            labelled=self.labelled,
            rows=self.rows,
            skipped=[*(self.pictures.skipped or ())],
        )

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What there is to see of each picture; `nearest` counts in `labelled`."""
        nearest = self.predictor.nearest(self.pictures.images, NEAREST).tolist()
        return [self._row(i, nearest[i]) for i in range(len(self.predicted))]

    @cached_property
    def labelled(self) -> list[tuple[str, str]]:
        """Class and thumbnail of each labelled picture."""
        classes = [self.predictor.classes[i] for i in self.predictor.labels.tolist()]
        return [*zip(classes, map(_thumbnail, self.predictor.images), strict=True)]

    def _row(self, i: int, nearest: list[int]) -> dict[str, Any]:
        of_classes = zip(self.probabilities[i].tolist(), self.predictor.classes, strict=True)
        ranked = sorted(of_classes, reverse=True)
        label = self.pictures.labels[i] if self.pictures.labels else None
        return {
            "name": self.pictures.names[i],
            "image": _thumbnail(self.pictures.images[i]),
            "predicted": self.predicted[i],
            "label": label,
            "wrong": label is not None and label != self.predicted[i],
            "ranked": ranked[:SHOWN_CLASSES],
            "nearest": nearest,
        }


def _thumbnail(image: Tensor) -> str:
    """(channels, size, size) uint8 as the address of an inlined PNG."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return png(picture)

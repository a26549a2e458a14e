"""Predictions of your pictures: a table for machines, a sheet to look at."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.predicting.pictures import Pictures
from fsl_core.predicting.predictor import AdaptedPredictor
from fsl_core.reporting.mosaics import png
from fsl_core.reporting.pages import write_page

THUMBNAIL = 96
SHOWN_CLASSES = 5
UNKNOWN = "unknown"
"""What is predicted where no class is probable enough."""
NEAREST = 3
"""Labelled pictures shown beside a prediction."""


@dataclass(frozen=True)
class Predictions:
    """What a predictor says about pictures.

    probabilities: (n, n_way), each row summing to 1.
    unknown_below: a picture whose most probable class is less probable than this is `unknown`.
    """

    predictor: AdaptedPredictor
    pictures: Pictures
    probabilities: Tensor
    unknown_below: float = 0.0

    @cached_property
    def predicted(self) -> list[str]:
        """The most probable class of each picture, or `unknown`."""
        most, which = self.probabilities.max(-1)
        sure = (most >= self.unknown_below).tolist()
        classes = [self.predictor.classes[i] for i in which.tolist()]
        return [name if known else UNKNOWN for name, known in zip(classes, sure, strict=True)]

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, if the right classes are known.

        Pictures that are `unknown` are left out; None if that is so for all.
        """
        pairs = [(label, p) for label, p in self._pairs if p != UNKNOWN]
        return sum(label == p for label, p in pairs) / len(pairs) if pairs else None

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """Right and predicted class of each picture; none if the right ones are not known."""
        return [*zip(self.pictures.labels or (), self.predicted, strict=False)]

    @cached_property
    def confusion(self) -> list[tuple[str, list[int], float]]:
        """Of each class that occurs: how many pictures were predicted as what, and the share right.

        The counts are in the order of `columns`.
        """
        counts = Counter(self._pairs)
        rows = []
        for name in self.predictor.classes:
            row = [counts[name, column] for column in self.columns]
            if total := sum(row):
                rows.append((name, row, counts[name, name] / total))
        return rows

    @property
    def columns(self) -> list[str]:
        """What may be predicted."""
        return [*self.predictor.classes, *([UNKNOWN] if self.unknown_below else [])]

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
            confusion=self.confusion,
            columns=self.columns,
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

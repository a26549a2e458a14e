"""Test episodes to look at: support, queries, what was predicted and what is true."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from fsl_core.engine.confusion import NONE_OF_THEM
from fsl_core.episode import Episode, TaskShape
from fsl_core.errors import DataError
from fsl_core.hooks.run_view import RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 6
QUERIES_A_CLASS = 8
SUPPORT_A_CLASS = 5
PIXELS = 56


@dataclass(frozen=True)
class Picture:
    """One picture of an episode.

    predicted: number of the class that a query was mistaken for, else None.
    """

    image: Image.Image
    text: str
    predicted: int | None = None

    @property
    def uri(self) -> str:
        """The image, inside a page."""
        if self.image.mode == "L":
            return png(self.image)
        buffer = io.BytesIO()  # a PNG of a photograph is several times larger
        self.image.save(buffer, format="JPEG", quality=85)
        return _inlined("jpeg", buffer)


@dataclass(frozen=True)
class ClassRow:
    """A class of an episode. Mistaken queries come first; `left_out` more are not shown."""

    name: str
    support: list[Picture]
    queries: list[Picture]
    left_out: int


@dataclass(frozen=True)
class ShownEpisode:
    """A test episode to look at.

    rows: of the classes of a classification.
    figure: of a regression on a line.
    """

    index: int
    score: float
    rows: tuple[ClassRow, ...] = ()
    figure: str = ""


def show_episodes(run: RunView, scores: Sequence[float]) -> tuple[list[ShownEpisode], str]:
    """The test episodes with the worst scores, predicted again; or none, and why.

    run: its present weights predict.
    scores: of all test episodes, as the run was judged.
    """
    task = run.test_task
    if why := why_not_shown(task):
        return [], why
    try:
        return [_show(task, one) for one in predicted_worst(run, scores, SHOWN)], ""
    except DataError as error:
        return [], str(error)


@dataclass(frozen=True)
class Predicted:
    """A test episode, predicted again: its number, what its classes are called, what was found."""

    index: int
    classes: list[str]
    episode: Episode
    prediction: Tensor


def predicted_worst(run: RunView, scores: Sequence[float], count: int) -> Iterator[Predicted]:
    """The test episodes with the worst scores.

    DataError where the data is gone.
    """
    worst_first = scores if run.test_task.metric == "accuracy" else [-score for score in scores]
    worst = [int(i) for i in np.argsort(worst_first, kind="stable")[:count]]
    unnamed = [("",) * run.test_task.n_way] * len(worst)
    names = run.episode_classes("test", worst) or unnamed
    for index, own, told in zip(worst, names, run.predict_episodes("test", worst), strict=True):
        classes = [f"class {i}" + (f": {name}" if name else "") for i, name in enumerate(own)]
        yield Predicted(index, classes, *told)


def why_not_shown(task: TaskShape) -> str:
    """Why episodes of this shape cannot be drawn; empty if they can."""
    picture = len(task.input_shape) == 3 and task.input_shape[0] in (1, 3)
    if task.kind == "classification" and not picture:
        return f"items of shape {task.input_shape} are not pictures"
    if task.kind == "regression" and (task.input_shape, task.output_dim) != ((1,), 1):
        return f"a function of {task.input_shape} to {task.output_dim} values is not a curve"
    return ""


def _show(task: TaskShape, one: Predicted) -> ShownEpisode:
    score = float(task.score(one.prediction, one.episode.query.y))
    if task.kind == "regression":
        return ShownEpisode(one.index, score, figure=_curve(one.episode, one.prediction))
    return ShownEpisode(one.index, score, class_rows(one))


def class_rows(one: Predicted) -> tuple[ClassRow, ...]:
    return tuple(_class_row(one, label) for label in range(len(one.classes)))


def _class_row(one: Predicted, label: int) -> ClassRow:
    support, query, _ = one.episode
    low, high = float(support.x.min()), float(support.x.max())
    told = f"support of {one.classes[label]}"
    mine = [i for i, y in enumerate(support.y.tolist()) if y == label][:SUPPORT_A_CLASS]
    labelled = [Picture(_image(support.x[i], low, high), told) for i in mine]
    queries = [i for i, y in enumerate(query.y.tolist()) if y == label]
    guesses = one.prediction.argmax(-1).tolist()
    queries.sort(key=lambda i: guesses[i] == label)  # mistakes first
    pictures = []
    for i in queries[:QUERIES_A_CLASS]:
        guess, wrong = guesses[i], guesses[i] if guesses[i] != label else None
        found = one.classes[guess] if guess < len(one.classes) else NONE_OF_THEM
        told = f"query of {one.classes[label]}, predicted {found}"
        pictures.append(Picture(_image(query.x[i], low, high), told, wrong))
    return ClassRow(one.classes[label], labelled, pictures, len(queries) - len(pictures))


def _image(x: Tensor, low: float, high: float) -> Image.Image:
    """An image of (channels, height, width) values, small.

    low is drawn as black, high as full.
    """
    values = ((x.detach().float().cpu().numpy() - low) / max(high - low, 1e-12)).clip(0, 1)
    pixels = (255 * values).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((PIXELS, PIXELS))
    return image


def png(image: Image.Image) -> str:
    """An image as the address of an inlined PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _inlined("png", buffer)


def _inlined(kind: str, content: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _curve(episode: Episode, prediction: Tensor) -> str:
    from fsl_core.reporting import figures  # here: matplotlib is slow to import, pictures are not

    figure, drawn = figures.axes("x", "y")
    draw_function(drawn, episode, prediction)
    return figures.svg(figure)


def draw_function(drawn: Axes, episode: Episode, prediction: Tensor) -> None:
    """Support, true and predicted queries of a regression on a line."""
    from fsl_core.reporting import figures

    x, true, predicted = map(_values, (*episode.query, prediction))
    order = np.argsort(x)
    for values, color, label in (
        (true, figures.GREY, "queries, true"),
        (predicted, figures.ORANGE, "queries, predicted"),
    ):
        drawn.plot(x[order], values[order], ".-", color=color, linewidth=1, label=label)
    drawn.plot(*map(_values, episode.support), "o", color=figures.BLUE, label="support")
    drawn.legend(frameon=False, labelcolor=figures.GREY, fontsize=8)


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().flatten().cpu().numpy()

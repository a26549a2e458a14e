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

    predicted: class of a query that was mistaken, else None.
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
class ShownEpisode:
    """A test episode to look at.

    rows: (support, queries, queries left out) for each class of a classification.
    figure: of a regression on a line.
    """

    index: int
    score: float
    rows: tuple[tuple[list[Picture], list[Picture], int], ...] = ()
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
        return [_show(i, task, *shown) for i, shown in predicted_worst(run, scores, SHOWN)], ""
    except DataError as error:
        return [], str(error)


def predicted_worst(
    run: RunView, scores: Sequence[float], count: int
) -> Iterator[tuple[int, tuple[Episode, Tensor]]]:
    """The test episodes with the worst scores, with their numbers and predictions.

    DataError where the data is gone.
    """
    worst_first = scores if run.test_task.metric == "accuracy" else [-score for score in scores]
    worst = [int(i) for i in np.argsort(worst_first, kind="stable")[:count]]
    return zip(worst, run.predict_episodes("test", worst), strict=True)


def why_not_shown(task: TaskShape) -> str:
    """Why episodes of this shape cannot be drawn; empty if they can."""
    picture = len(task.input_shape) == 3 and task.input_shape[0] in (1, 3)
    if task.kind == "classification" and not picture:
        return f"items of shape {task.input_shape} are not pictures"
    if task.kind == "regression" and (task.input_shape, task.output_dim) != ((1,), 1):
        return f"a function of {task.input_shape} to {task.output_dim} values is not a curve"
    return ""


def _show(index: int, task: TaskShape, episode: Episode, prediction: Tensor) -> ShownEpisode:
    score = float(task.score(prediction, episode.query.y))
    if task.kind == "regression":
        return ShownEpisode(index, score, figure=_curve(episode, prediction))
    return ShownEpisode(index, score, class_rows(episode, prediction, task.n_way))


def class_rows(
    episode: Episode, prediction: Tensor, n_way: int
) -> tuple[tuple[list[Picture], list[Picture], int], ...]:
    """Support, queries and the number of queries left out, of each class."""
    predicted = prediction.argmax(-1)
    return tuple(_class_row(episode, predicted, c) for c in range(n_way))


def _class_row(
    episode: Episode, predicted: Tensor, label: int
) -> tuple[list[Picture], list[Picture], int]:
    low, high = float(episode.support.x.min()), float(episode.support.x.max())
    mine = [i for i, y in enumerate(episode.support.y.tolist()) if y == label][:SUPPORT_A_CLASS]
    support = [
        Picture(_image(episode.support.x[i], low, high), f"support of class {label}") for i in mine
    ]
    queries = [i for i, y in enumerate(episode.query.y.tolist()) if y == label]
    guesses = predicted.tolist()
    queries.sort(key=lambda i: guesses[i] == label)  # mistakes first
    pictures = []
    for i in queries[:QUERIES_A_CLASS]:
        text = f"query of class {label}, predicted {guesses[i]}"
        wrong = guesses[i] if guesses[i] != label else None
        pictures.append(Picture(_image(episode.query.x[i], low, high), text, wrong))
    return support, pictures, len(queries) - len(pictures)


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

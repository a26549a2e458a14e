"""Numbers below or above a threshold; some tasks mean the opposite of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl


class ThresholdComparison(fsl.EpisodeSource):
    """y = 1[s * (x - t) > 0] for x in -1 .. 1, a 2-way classification.

    A task is a threshold t, uniform in -spread .. spread, and a sign s. s is -1 in a share
    `flipped` of the tasks, which call above what the others call below. x is (n, 1) float32,
    uniform on its side of t: half of the items lie on either side, wherever t is. Every split has
    the same distribution and draws of its own.

    After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
    interpretation; the paper's text was not available: of this experiment the abstract has the
    name alone.
    """

    name = "threshold-comparison"

    def __init__(
        self,
        n_shot: Annotated[
            int, Field(ge=1, description="labelled numbers on each side of the threshold")
        ] = 5,
        n_query: Annotated[int, Field(ge=1, description="numbers to predict on each side")] = 10,
        flipped: Annotated[
            float, Field(ge=0, le=1, description="share of tasks whose labels are exchanged")
        ] = 0.5,
        spread: Annotated[
            float, Field(ge=0, lt=1, description="thresholds lie in -spread .. spread")
        ] = 0.5,
    ):
        self.task = fsl.TaskShape("classification", 2, n_shot, n_query, (1,), 2)
        self.flipped, self.spread = flipped, spread
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> ThresholdComparison:
        self._device = torch.device(device)
        return self

    def check(self, split: fsl.Split, task: fsl.TaskShape | None = None) -> None:
        n_way = (task or self.task).n_way
        if n_way != 2:
            raise fsl.DataError(
                f"episodes {self.name!r}: n_way {n_way}. 2: below and above the threshold"
            )

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        task = task or self.task
        self.check(split, task)
        per_class = task.n_shot + task.n_query
        u = fsl.to_uniform(fsl.draw_bits(seed, split, indices, 2 + 2 * per_class))
        flipped, threshold = u[:, 0] < self.flipped, self.spread * (2 * u[:, 1] - 1)
        # Above 0, so that nothing lies on the threshold.
        share = 1 - u[:, 2:].reshape(-1, per_class, 2).transpose(0, 2, 1)
        above = np.array([False, True]) != flipped[:, None]  # (episodes, class): the class's side
        end = np.where(above, 1.0, -1.0) - threshold[:, None]
        x = threshold[:, None, None] + end[..., None] * share
        return self._episode(x.astype(np.float32), task.n_shot, indices)

    def _episode(self, x: np.ndarray, n_shot: int, indices: Sequence[int]) -> fsl.Episode:
        """x: (episodes, 2, n_shot + n_query)."""
        items = torch.from_numpy(x).to(self._device)

        def labelled(part: torch.Tensor) -> fsl.LabelledSet:
            classes = torch.arange(2, device=self._device).repeat_interleave(part.shape[2])
            return fsl.LabelledSet(part.flatten(1)[..., None], classes.expand(len(part), -1))

        ids = torch.tensor(list(indices), dtype=torch.int64, device=self._device)
        return fsl.Episode(labelled(items[:, :, :n_shot]), labelled(items[:, :, n_shot:]), ids)

"""Sine waves to regress from a few points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl

AMPLITUDE, PHASE, X = (0.1, 5.0), (0.0, np.pi), (-5.0, 5.0)


class Sinusoid(fsl.EpisodeSource):
    """y = amplitude * sin(x - phase), a regression task.

    Amplitude in 0.1 .. 5, phase in 0 .. pi and x in -5 .. 5 are all uniform; x and y are (n, 1)
    float32. Every split has the same distribution and draws of its own. With `tasks`, training
    repeats that many waves in turn, each time at fresh points; validation and test waves stay
    fresh. Source: Finn et al. 2017, arXiv:1703.03400, section 5.1, and its code, cbfinn/maml,
    data_generator.py, whose test run draws from these ranges too. Differs: that code has as many
    queries as shots.
    """

    name = "sinusoid"

    def __init__(
        self,
        n_shot: Annotated[
            int, Field(ge=1, description="labelled points of a wave, the paper's K")
        ] = 5,
        n_query: Annotated[int, Field(ge=1, description="points of a wave to predict")] = 10,
        tasks: Annotated[
            int | None,
            Field(
                ge=1,
                description="number of training waves, repeated in turn; null: each episode has "
                "its own",
            ),
        ] = None,
    ):
        self.tasks = tasks
        self.task = fsl.TaskShape("regression", 1, n_shot, n_query, (1,), 1)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Sinusoid:
        self._device = torch.device(device)
        return self

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        task = task or self.task
        u = _uniform(seed, split, indices, 2 + task.n_shot + task.n_query)
        numbers, wave, points = list(indices), u[:, :2], u[:, 2:]
        if self.tasks is not None and split == "train":
            numbers = [i % self.tasks for i in indices]
            wave = _uniform(seed, split, numbers, 2)
        amplitude, phase = _between(wave[:, :1], AMPLITUDE), _between(wave[:, 1:], PHASE)
        x = _between(points, X)
        y = amplitude * np.sin(x - phase)
        xs, ys = (torch.from_numpy(a.astype(np.float32)).to(self._device) for a in (x, y))
        support = fsl.LabelledSet(xs[:, : task.n_shot], ys[:, : task.n_shot])
        query = fsl.LabelledSet(xs[:, task.n_shot :], ys[:, task.n_shot :])
        ids = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        return fsl.Episode(support, query, ids)


def _uniform(seed: int, split: str, indices: Sequence[int], n: int) -> np.ndarray:
    """(len(indices), n, 1) numbers in [0, 1)."""
    return fsl.to_uniform(fsl.draw_bits(seed, split, indices, n))[..., None]


def _between(u: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return low + (high - low) * u


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Sinusoid)

"""Sine waves to regress from a few points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

import fsl_core as fsl

AMPLITUDE, PHASE, X = (0.1, 5.0), (0.0, np.pi), (-5.0, 5.0)


class Grid(BaseModel):
    """Amplitudes 1, 2, .. and phases -pi k / phases, k = 1 .. phases: every pair is a wave."""

    model_config = ConfigDict(extra="forbid")

    amplitudes: Annotated[int, Field(ge=1, description="1, 2, .. this number")]
    phases: Annotated[int, Field(ge=1, description="equal parts of half a turn")]


class Sinusoid(fsl.EpisodeSource):
    """y = amplitude * sin(x - phase), a regression task.

    Amplitude in 0.1 .. 5, phase in 0 .. pi and x in -5 .. 5 are all uniform; x and y are (n, 1)
    float32. Every split has the same distribution and draws of its own. With `tasks`, training
    repeats that many waves, each time at fresh points; validation and test waves stay fresh.
    Source: Finn et al. 2017, arXiv:1703.03400, section 5.1, and its code, cbfinn/maml,
    data_generator.py, whose test run draws from these ranges too. Differs: that code has as many
    queries as shots.

    With `grid`, the training waves are those of Wang et al. 2021, arXiv:2106.04911, by its code,
    bokun-wang/moml, sinewave/train.py: y = a * sin(x + pi k / phases). That code adds its phase and
    this source subtracts, so a phase of the grid is -pi k / phases. Wave k of amplitude a is task
    (a - 1) * phases + k - 1, whatever the seed. Validation and test waves are uniform between the
    smallest and the largest amplitude and phase. Differs: that code has five test waves by seeds of
    their own.
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
                description="number of training waves, which come again; null: each episode has "
                "its own",
            ),
        ] = None,
        grid: Annotated[
            Grid | None,
            Field(description="training waves of fixed amplitudes and phases in place of `tasks`"),
        ] = None,
        order: Annotated[
            Literal["in-turn", "random"],
            Field(description="how the waves of `tasks` or `grid` come again in training"),
        ] = "in-turn",
    ):
        if grid is not None and tasks is not None:
            raise ValueError(
                f"tasks: {tasks} with a grid of {grid.amplitudes * grid.phases} waves. One of the "
                "two: both say which waves are trained on"
            )
        self.grid, self.order = grid, order
        self.tasks = tasks if grid is None else grid.amplitudes * grid.phases
        if order == "random" and self.tasks is None:
            raise ValueError("order: random of waves that never come again. With `tasks` or `grid`")
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
            drawn = (wave[:, 0, 0] * self.tasks).astype(int).tolist()
            numbers = drawn if self.order == "random" else [i % self.tasks for i in indices]
            wave = _uniform(seed, split, numbers, 2) if self.grid is None else wave
        amplitude, phase = self._waves(split, numbers, wave)
        x = _between(points, X)
        y = amplitude * np.sin(x - phase)
        xs, ys = (torch.from_numpy(a.astype(np.float32)).to(self._device) for a in (x, y))
        support = fsl.LabelledSet(xs[:, : task.n_shot], ys[:, : task.n_shot])
        query = fsl.LabelledSet(xs[:, task.n_shot :], ys[:, task.n_shot :])
        ids = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        return fsl.Episode(support, query, ids)

    def _waves(
        self, split: fsl.Split, numbers: Sequence[int], u: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Amplitude and phase, (n, 1, 1) each; u: (n, 2, 1) numbers in [0, 1)."""
        if self.grid is None:
            return _between(u[:, :1], AMPLITUDE), _between(u[:, 1:], PHASE)
        amplitudes, phases = self.grid.amplitudes, self.grid.phases
        if split != "train":
            inside = (-np.pi, -np.pi / phases)
            return _between(u[:, :1], (1, amplitudes)), _between(u[:, 1:], inside)
        of_amplitude, of_phase = np.divmod(np.array(numbers).reshape(-1, 1, 1), phases)
        return 1.0 + of_amplitude, -np.pi * (1 + of_phase) / phases


def _uniform(seed: int, split: str, indices: Sequence[int], n: int) -> np.ndarray:
    """(len(indices), n, 1) numbers in [0, 1)."""
    return fsl.to_uniform(fsl.draw_bits(seed, split, indices, n))[..., None]


def _between(u: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    return low + (high - low) * u


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Sinusoid)

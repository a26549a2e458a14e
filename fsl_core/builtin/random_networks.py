"""Functions of small random networks: tasks that share features, or do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl

X, INPUTS = (-1.0, 1.0), 1000
Weights = list[tuple[np.ndarray, np.ndarray]]
"""Of each layer a matrix, (tasks, in, out), and a shift, (tasks, 1, out)."""


class RandomNetworks(fsl.EpisodeSource):
    """y = f(x) of a fully connected network 1 - hidden - 1, a regression task.

    Weights and biases of a task are normal around a centre of its split: with variance `spread` in
    all layers but the last, and `last_spread` in the last one. The centre is standard normal. At a
    small spread tasks share all features; at a large one each needs features of its own.

    x: (n, 1) float32, drawn without repetition within a task from 1,000 inputs that all tasks of a
       split share, uniform in -1 .. 1.    y: (n, 1) float32.

    Every split has a centre and networks of its own, by the seed. With `tasks`, the networks of
    each split come again, in turn, each time at fresh points.

    Source: Miranda, Wang and Koyejo 2021, arXiv:2112.13137, by its code,
    brando90/Does-MAML-Only-Work-via-Feature-Re-use-A-Data-Set-Centric-Perspective, in which the
    variances are called std1 and std2. Differs: random numbers. Left out: its option of batch
    normalisation.
    """

    name = "random-networks"

    def __init__(
        self,
        spread: Annotated[
            float, Field(ge=0, description="variance of weights between tasks; the code's std1")
        ] = 1.0,
        last_spread: Annotated[
            float, Field(ge=0, description="the same of the last layer; the code's std2")
        ] = 1.0,
        hidden: Annotated[
            tuple[Annotated[int, Field(ge=1)], ...],
            Field(min_length=1, description="units of each hidden layer of the networks"),
        ] = (15, 15, 15),
        activation: Annotated[
            Literal["relu", "sigmoid"], Field(description="between the layers of the networks")
        ] = "relu",
        n_shot: Annotated[int, Field(ge=1, description="labelled points of a function")] = 5,
        n_query: Annotated[int, Field(ge=1, description="points of a function to predict")] = 100,
        tasks: Annotated[
            int | None,
            Field(ge=1, description="networks of each split; null: each episode has its own"),
        ] = 200,
        noise: Annotated[float, Field(ge=0, description="deviation of what is added to y")] = 0.0,
        standardise: Annotated[
            bool, Field(description="whether y of a task has mean 0 and variance 1 over the inputs")
        ] = False,
    ):
        if n_shot + n_query > INPUTS:
            raise ValueError(
                f"n_shot + n_query: {n_shot} + {n_query}. At most {INPUTS}, as there are inputs"
            )
        self.spread, self.last_spread, self.noise = spread, last_spread, noise
        self.widths, self.activation = [1, *hidden, 1], activation
        self.tasks, self.standardise = tasks, standardise
        self.task = fsl.TaskShape("regression", 1, n_shot, n_query, (1,), 1)
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> RandomNetworks:
        self._device = torch.device(device)
        return self

    def check(self, split: fsl.Split, task: fsl.TaskShape | None = None) -> None:
        task = task or self.task
        if task.n_shot + task.n_query > INPUTS:
            raise fsl.DataError(
                f"episodes {self.name!r}: {task.n_shot} + {task.n_query} points of {INPUTS} "
                "inputs. Fewer shots or queries"
            )

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        task = task or self.task
        self.check(split, task)
        numbers = [i % self.tasks for i in indices] if self.tasks else list(indices)
        inputs = self._inputs(split, seed)
        points = task.n_shot + task.n_query
        bits = fsl.draw_bits(seed, f"{split}/points", indices, points)
        drawn = fsl.to_distinct(bits, np.full(len(bits), INPUTS))
        x, networks = inputs[drawn], self._networks(split, numbers, seed)
        y = self._values(networks, x)
        if self.standardise:
            whole = self._values(networks, inputs[None])
            deviation = np.maximum(whole.std(1, keepdims=True), 1e-12)
            y = (y - whole.mean(1, keepdims=True)) / deviation
        if self.noise:
            y = y + self.noise * _normal(seed, f"{split}/noise", indices, points)
        return self._episode(x, y, task.n_shot, numbers)

    def _inputs(self, split: str, seed: int) -> np.ndarray:
        u = fsl.to_uniform(fsl.draw_bits(seed, f"{split}/inputs", [0], INPUTS))[0]
        return X[0] + (X[1] - X[0]) * u

    def _networks(self, split: str, numbers: Sequence[int], seed: int) -> Weights:
        shapes = [(i + 1) * o for i, o in pairwise(self.widths)]
        centre = _normal(seed, f"{split}/centre", [0], sum(shapes))
        apart = _normal(seed, f"{split}/network", numbers, sum(shapes))
        spreads = np.repeat([self.spread] * (len(shapes) - 1) + [self.last_spread], shapes)
        parts = np.split(centre + np.sqrt(spreads) * apart, np.cumsum(shapes)[:-1], axis=1)
        layers = [
            part.reshape(len(part), i + 1, o)
            for part, (i, o) in zip(parts, pairwise(self.widths), strict=True)
        ]
        return [(layer[:, :-1], layer[:, -1:]) for layer in layers]

    def _values(self, networks: Weights, x: np.ndarray) -> np.ndarray:
        """(tasks, n): each network at its inputs x, (tasks, n), or at all of (1, n)."""
        from scipy.special import expit  # type: ignore[import-untyped]  # it ships no types

        h = x[..., None]
        for number, (matrix, shift) in enumerate(networks):
            h = h @ matrix + shift
            if number < len(networks) - 1:
                h = np.maximum(h, 0) if self.activation == "relu" else expit(h)
        return h[..., 0]

    def _episode(
        self, x: np.ndarray, y: np.ndarray, n_shot: int, numbers: Sequence[int]
    ) -> fsl.Episode:
        xs, ys = (
            torch.from_numpy(part.astype(np.float32))[..., None].to(self._device) for part in (x, y)
        )
        ids = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        support = fsl.LabelledSet(xs[:, :n_shot], ys[:, :n_shot])
        return fsl.Episode(support, fsl.LabelledSet(xs[:, n_shot:], ys[:, n_shot:]), ids)


def _normal(seed: int, name: str, indices: Sequence[int], n: int) -> np.ndarray:
    """(len(indices), n) standard normal numbers."""
    from scipy.special import ndtri  # type: ignore[import-untyped]  # here: every command loads us

    u = fsl.to_uniform(fsl.draw_bits(seed, name, indices, n))
    return ndtri(np.clip(u, 2.0**-33, 1 - 2.0**-33))


@fsl.hookimpl
def fsl_register_episodes(register):
    register(RandomNetworks)

"""One coefficient of a wavelet transform as a function of the sampled signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl

Kind = Literal["haar", "ricker"]
SCALE = (0.25, 0.5)  # of the whole signal


class WaveletTransform(fsl.EpisodeSource):
    """Signals to their coefficient of one wavelet, y = sum_j x_j psi_j.

    Regression; the task is the wavelet's scale and shift.

    x: (n, samples) float32, periodic signals of unit variance: sum over k = 1 .. harmonics of
       a_k cos(2 pi k tau) + b_k sin(2 pi k tau), with a_k and b_k normal, at
       tau = 0, 1 / samples, ...
    psi, of unit Euclidean norm, at distance d from its centre `shift`, around the circle, and with
       `scale` in 0.25 .. 0.5:
       haar    1 for -scale / 2 <= d < 0, -1 for 0 <= d < scale / 2, else 0.
       ricker  (1 - u^2) exp(-u^2 / 2) with u = 4 d / scale, less its mean.
    y: (n, 1) float32.

    shift in 0 .. 1 and scale are uniform. Every split has the same distribution and draws of its
    own.

    After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
    interpretation; the paper's text was not available: of this experiment the abstract has the
    name alone.
    """

    name = "wavelet-transform"

    def __init__(
        self,
        wavelet: Annotated[
            Kind, Field(description="haar: one step up and down. ricker: the Mexican hat")
        ] = "haar",
        samples: Annotated[int, Field(ge=16, description="values of a sampled signal")] = 32,
        harmonics: Annotated[
            int, Field(ge=1, description="frequencies in a signal, at most (samples - 1) / 2")
        ] = 4,
        n_shot: Annotated[int, Field(ge=1, description="signals with their coefficient")] = 10,
        n_query: Annotated[
            int, Field(ge=1, description="signals to predict the coefficient of")
        ] = 10,
    ):
        if harmonics > (samples - 1) // 2:
            raise ValueError(
                f"harmonics: {harmonics} with {samples} samples. At most {(samples - 1) // 2}"
            )
        self.task = fsl.TaskShape("regression", 1, n_shot, n_query, (samples,), 1)
        self.wavelet, self.harmonics = wavelet, harmonics
        self._times = np.arange(samples) / samples
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> WaveletTransform:
        self._device = torch.device(device)
        return self

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        task = task or self.task
        n = task.n_shot + task.n_query
        u = fsl.to_uniform(fsl.draw_bits(seed, split, indices, 2 + n * 2 * self.harmonics))
        scale, shift = SCALE[0] + (SCALE[1] - SCALE[0]) * u[:, 0], u[:, 1]
        x = self._signals(u[:, 2:].reshape(len(u), n, self.harmonics, 2))
        y = x @ wavelet(self.wavelet, self._times, scale, shift)[..., None]
        xs, ys = (torch.from_numpy(a.astype(np.float32)).to(self._device) for a in (x, y))
        support = fsl.LabelledSet(xs[:, : task.n_shot], ys[:, : task.n_shot])
        query = fsl.LabelledSet(xs[:, task.n_shot :], ys[:, task.n_shot :])
        return fsl.Episode(
            support, query, torch.tensor(list(indices), dtype=torch.int64, device=self._device)
        )

    def _signals(self, u: np.ndarray) -> np.ndarray:
        """(..., harmonics, 2) uniform numbers -> (..., samples).

        A pair of normal numbers is a Rayleigh radius and an angle.
        """
        radius, angle = np.sqrt(-2 * np.log1p(-u[..., 0])), 2 * np.pi * u[..., 1]
        waves = 2 * np.pi * np.arange(1, self.harmonics + 1)[:, None] * self._times
        cosines = (radius * np.cos(angle)) @ np.cos(waves)
        sines = (radius * np.sin(angle)) @ np.sin(waves)
        return (cosines + sines) / np.sqrt(self.harmonics)


def wavelet(kind: Kind, times: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(tasks, samples) wavelets of unit norm on the circle of length 1.

    times:        (samples,) in 0 .. 1.
    scale, shift: (tasks,), in units of the circle.
    """
    distance = (times - shift[:, None] + 0.5) % 1 - 0.5
    scale = scale[:, None]
    if kind == "haar":
        values = np.select(
            [(-scale / 2 <= distance) & (distance < 0), (distance >= 0) & (distance < scale / 2)],
            [1.0, -1.0],
        )
    else:
        u = 4 * distance / scale
        values = (1 - u**2) * np.exp(-(u**2) / 2)
        values -= values.mean(1, keepdims=True)
    return values / np.linalg.norm(values, axis=1, keepdims=True)

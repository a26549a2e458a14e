"""Handwriting by numbers: random stroke characters and many drawings of each, without a download.

The same arguments give the same pixels on every machine: random bits are Philox words, the
arithmetic is float64 with operations that IEEE 754 rounds exactly (no sine, no exponential, no
matrix product), and pixels are quantised last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import fsl_core as fsl

STROKES = 4  # at most, in a character
POINTS = 6  # control points of a stroke
STEPS = 9  # pen positions from one control point to the next
SIDE = 28  # pixels
WORDS = 96  # random numbers that a character or a drawing may take
CHUNK = 4000  # drawings rendered at a time: bounds memory to about 100 MB


def draw_characters(
    n_classes: int, n_drawings: int, jitter: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Random characters, each drawn many times: (n_classes, n_drawings, 1, 28, 28) uint8.

    Ink is 255 on 0. Drawing d of character c is a function of (seed, jitter, c, d), however many
    others there are.

    jitter: how much one drawing differs from another; with 0 all drawings of a class are the same,
        with 1 they look like a hurried hand's.
    seed:   other numbers give other characters.
    """
    points, present = _characters(_Dice(seed, "characters", range(n_classes)))
    images = np.empty((n_classes, n_drawings, 1, SIDE, SIDE), np.uint8)
    step = max(1, CHUNK // n_drawings)
    for start in range(0, n_classes, step):
        chosen = range(n_classes)[start : start + step]
        dice = _Dice(seed, "drawings", [c * 2**32 + d for c in chosen for d in range(n_drawings)])
        path, radius = _hand(dice, np.repeat(points[chosen], n_drawings, axis=0), jitter)
        drawn = _render(_curve(path), np.repeat(present[chosen], n_drawings, axis=0), radius)
        images[chosen] = drawn.reshape(-1, n_drawings, 1, SIDE, SIDE)
    return images


class _Dice:
    """A row of random numbers for each index, taken from left to right."""

    def __init__(self, seed: int, purpose: str, indices: Sequence[int]):
        self._rows, self._taken = fsl.to_uniform(fsl.draw_bits(seed, purpose, indices, WORDS)), 0

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """(len(indices), *shape) numbers between low and high."""
        start, self._taken = self._taken, self._taken + math.prod(shape)
        return low + (high - low) * self._rows[:, start : self._taken].reshape(-1, *shape)

    def bell(self, scale: float, *shape: int) -> np.ndarray:
        """Mean 0, standard deviation `scale`, never beyond 3 of them: a sum of three uniforms."""
        a, b, c = (self.uniform(-scale, scale, *shape) for _ in range(3))
        return a + b + c


def _turn(heading: np.ndarray, half_tangent: np.ndarray) -> np.ndarray:
    """Rotate (..., 2) vectors by 2 * atan(half_tangent), which needs no sine."""
    square = half_tangent * half_tangent
    cos, sin = (1 - square) / (1 + square), 2 * half_tangent / (1 + square)
    x, y = heading[..., 0], heading[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1)


def _characters(dice: _Dice) -> tuple[np.ndarray, np.ndarray]:
    """Control points within -1 .. 1, and which strokes a character has.

    They are (n, STROKES, POINTS, 2) and (n, STROKES). The pen walks from point to point, turning by
    a bend that is constant (line, arc, loop), changes side half way (S), or comes all at once
    (corner). Later strokes mostly start on an earlier one.
    """
    count = 1 + np.searchsorted([0.10, 0.45, 0.80], dice.uniform(0, 1))
    joined, kind, onto, at = (dice.uniform(0, 1, STROKES) for _ in range(4))
    free, heading = dice.uniform(-0.7, 0.7, STROKES, 2), dice.uniform(-1, 1, STROKES, 2)
    length, bend = dice.uniform(0.8, 1.8, STROKES), dice.uniform(-0.75, 0.75, STROKES)
    bend += np.where(bend > 0, 0.25, -0.25)
    heading /= np.sqrt(heading[..., :1] ** 2 + heading[..., 1:] ** 2 + 1e-9)
    straight, cornered = (kind < 0.30) & (count > 1)[:, None], (kind > 0.60) & (kind < 0.80)

    bends = np.arange(1, POINTS - 1)  # the control points at which a stroke may turn
    side = np.where((kind > 0.80)[..., None] & (bends > POINTS // 2), -1.0, 1.0)
    sudden = bends == 1 + np.floor(at * len(bends))[..., None].astype(int)
    gradual = 0.5 * side * ~straight[..., None]
    turns = bend[..., None] * np.where(cornered[..., None], 1.2 * sudden, gradual)

    n = len(count)
    points = np.empty((n, STROKES, POINTS, 2))
    rows = np.arange(n)
    for stroke in range(STROKES):
        start = free[:, stroke]
        if stroke:
            its_number = np.floor(onto[:, stroke] * stroke).astype(int)
            its_point = np.floor(at[:, stroke] * POINTS).astype(int)
            earlier = points[rows, its_number, its_point]
            start = np.where((joined[:, stroke] < 0.80)[:, None], earlier, start)
        direction = heading[:, stroke]
        pace = (length[:, stroke] / (POINTS - 1))[:, None]
        points[:, stroke, 0] = start
        for k in range(1, POINTS):
            if k > 1:
                direction = _turn(direction, turns[:, stroke, k - 2])
            points[:, stroke, k] = points[:, stroke, k - 1] + direction * pace

    present = np.arange(STROKES) < count[:, None]
    inside = present[..., None, None]
    low = np.where(inside, points, np.inf).min((1, 2), keepdims=True)
    high = np.where(inside, points, -np.inf).max((1, 2), keepdims=True)
    return (points - (low + high) / 2) * (1.55 / (high - low).max(-1, keepdims=True)), present


def _hand(dice: _Dice, points: np.ndarray, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """One drawing of each row: control points in pixels, and the pen's radius in pixels, (n,)."""
    along = np.linspace(-1, 1, POINTS)[:, None]
    # Each stroke is moved, pulled lengthwise or sideways, and bent.
    moved, pulled, bent = (dice.bell(0.03 * jitter, STROKES, 1, 2) for _ in range(3))
    points = points + moved + along * pulled + along**2 * bent
    points = _turn(points, dice.bell(0.07 * jitter, 1, 1))
    scale, shear = 1 + dice.bell(0.09 * jitter, 1, 1, 2), dice.bell(0.12 * jitter, 1, 1)
    x, y = points[..., 0] * scale[..., 0], points[..., 1] * scale[..., 1]
    shift = dice.bell(1.7 * jitter, 1, 1, 2)
    pixels = np.stack([x + shear * y, y], -1) * (SIDE / 2.4) + (SIDE - 1) / 2 + shift
    return pixels, 0.95 + dice.uniform(-0.3, 0.3) * min(jitter, 1.0)


def _curve(points: np.ndarray) -> np.ndarray:
    """Catmull-Rom spline through the control points: (n, STROKES, pen positions, 2)."""
    before = np.concatenate([points[:, :, :1], points[:, :, :-1]], 2)
    after = np.concatenate([points[:, :, 1:], points[:, :, -1:]], 2)
    slope = (after - before) / 2
    t = (np.arange(STEPS) / STEPS)[:, None]
    a, b = points[:, :, :-1, None], points[:, :, 1:, None]
    u, v = slope[:, :, :-1, None], slope[:, :, 1:, None]
    curve = a + t * (u + t * (3 * (b - a) - 2 * u - v + t * (2 * (a - b) + u + v)))
    return curve.reshape(*points.shape[:2], -1, 2)


def _render(curve: np.ndarray, present: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Antialiased discs at the pen positions, cut off at the edges: (n, SIDE, SIDE) uint8."""
    margin = 4
    width = SIDE + 2 * margin
    drawing, stroke = np.nonzero(present)
    # (strokes, pen positions, 2)
    centre = np.clip(curve[drawing, stroke], -2.5, SIDE + 1.5) + margin
    corner = np.floor(centre).astype(np.int64)
    away = centre - corner
    reach = (radius + 0.5)[drawing][:, None]
    sheet = np.zeros(len(present) * width * width, np.uint8)
    home = drawing[:, None] * width * width + corner[..., 1] * width + corner[..., 0]
    for down in range(-1, 3):
        vertical = (away[..., 1] - down) ** 2
        for right in range(-1, 3):
            distance = np.sqrt(vertical + (away[..., 0] - right) ** 2)
            ink = (255 * np.clip(reach - distance, 0, 1)).astype(np.uint8)
            np.maximum.at(sheet, (home + (down * width + right)).ravel(), ink.ravel())
    return sheet.reshape(-1, width, width)[:, margin:-margin, margin:-margin]

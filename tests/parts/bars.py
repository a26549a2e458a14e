"""Folders of coloured bars: drawn pictures whose kind a network with start values can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"amber": (250, 190, 20), "blue": (30, 60, 220), "green": (20, 160, 60)}


def draw(file: Path, colour: tuple[int, int, int], angle: float, side: int = 40) -> Path:
    """A bar of this colour on white, as wide as the picture."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    ink = np.abs(x * np.cos(angle) + y * np.sin(angle)) < 0.4
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(ink[..., None], colour, 255).astype(np.uint8)).save(file)
    return file


def make(folder: Path, counts: dict[str, int], turned: float = 0.0) -> Path:
    """A folder with a folder of so many bars for each kind, at different angles."""
    for kind, count in counts.items():
        for i in range(count):
            draw(folder / kind / f"{i}.png", KINDS[kind], 0.4 * i + turned)
    return folder

"""Draws the pictures of index.md: cups, fishes and leaves, no two of them alike.

python docs/drawings.py FOLDER        makes FOLDER/sorted/<kind>/*.png and FOLDER/new/*.png
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 320
"""Pixels: drawn in four times the size and made smaller, so that edges are smooth."""
SCALE = 4
SORTED = 5
"""Drawings of each kind that are sorted already."""

Pen = ImageDraw.ImageDraw
Colour = tuple[int, int, int]


def cup(pen: Pen, colour: Colour, shade: Colour, lean: float) -> None:
    """On a canvas from 0 to 100 both ways, as the others."""
    _line(pen, [(66, 40), (86 - 8 * lean, 42), (84 - 8 * lean, 62), (64, 66)], colour, 7)
    _fill(pen, [(20, 30), (70, 30), (64 - 4 * lean, 82), (26 + 4 * lean, 82)], colour)
    _oval(pen, (20, 24, 70, 38), shade)


def fish(pen: Pen, colour: Colour, shade: Colour, lean: float) -> None:
    _fill(pen, [(62, 52), (92, 32 + 8 * lean), (84, 52), (92, 74 - 8 * lean)], shade)
    _fill(pen, [(34, 40), (46, 18 + 8 * lean), (58, 40)], shade)
    _oval(pen, (8, 34 + 3 * lean, 70, 70 - 3 * lean), colour)
    _oval(pen, (18, 44, 25, 51), (255, 255, 255))
    _oval(pen, (20, 46, 24, 50), (20, 20, 20))


def leaf(pen: Pen, colour: Colour, shade: Colour, lean: float) -> None:
    half = 20 + 8 * lean
    turns = [i / 20 for i in range(21)]
    right = [(50 + half * math.sin(math.pi * t) ** 0.8, 8 + 72 * t) for t in turns]
    left = [(100 - x, y) for x, y in reversed(right)]
    _fill(pen, right + left, colour)
    _line(pen, [(50, 12), (50, 96)], shade, 3)
    for y in (32, 46, 60):
        _line(pen, [(50 - half / 2, y - 8), (50, y), (50 + half / 2, y - 8)], shade, 2)


KINDS: dict[str, Callable[[Pen, Colour, Colour, float], None]] = {
    "cup": cup,
    "fish": fish,
    "leaf": leaf,
}
NEW = ["fish", "leaf", "cup", "cup", "leaf", "fish", "cup", "leaf"]
"""What the new pictures show, in the order of their names."""


def draw(kind: str, seed: int) -> Image.Image:
    """One picture of this kind: other colours, another slant, size and place for each seed."""
    chance = random.Random(f"{kind} {seed}")
    side = SIDE * SCALE
    picture = Image.new("RGB", (side, side), _colour(chance, 190, 245))
    drawn = Image.new("RGBA", (100 * SCALE, 100 * SCALE), (0, 0, 0, 0))
    colour = _colour(chance, 40, 190)
    shade = tuple(part * 2 // 3 for part in colour)
    KINDS[kind](ImageDraw.Draw(drawn), colour, shade, chance.random())  # type: ignore[arg-type]
    size = round(side * chance.uniform(0.6, 0.85))
    if chance.random() < 0.5:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = drawn.resize((size, size)).rotate(
        chance.uniform(-35, 35), Image.Resampling.BICUBIC, expand=True
    )
    place = [round((side - length) * chance.uniform(0.3, 0.7)) for length in drawn.size]
    picture.paste(drawn, (place[0], place[1]), drawn)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def make(folder: Path) -> None:
    """The folders `sorted` and `new`."""
    files = {
        folder / "sorted" / kind / f"{i}.png": (kind, i) for kind in KINDS for i in range(SORTED)
    }
    files |= {
        folder / "new" / f"IMG_{i + 1:04}.png": (kind, SORTED + i) for i, kind in enumerate(NEW)
    }
    for file, (kind, seed) in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(kind, seed).save(file)


def _colour(chance: random.Random, low: int, high: int) -> Colour:
    return (chance.randint(low, high), chance.randint(low, high), chance.randint(low, high))


def _fill(pen: Pen, points: list[tuple[float, float]], colour: Colour) -> None:
    pen.polygon([(SCALE * x, SCALE * y) for x, y in points], colour)


def _oval(pen: Pen, box: tuple[float, float, float, float], colour: Colour) -> None:
    pen.ellipse([SCALE * at for at in box], colour)


def _line(pen: Pen, points: list[tuple[float, float]], colour: Colour, width: int) -> None:
    pen.line([(SCALE * x, SCALE * y) for x, y in points], colour, SCALE * width, joint="curve")


if __name__ == "__main__":
    make(Path(sys.argv[1]))

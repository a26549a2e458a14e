"""1,800 made-up characters, 20 drawings of each: an Omniglot-like set that needs no download."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.builtin import _strokes as strokes
from fsl_core.data.cache import content_key
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways

PER_CLASS = 20
CLASSES: dict[fsl.Split, slice] = {
    "train": slice(0, 1200),
    "validation": slice(1200, 1400),
    "test": slice(1400, 1800),
}


class Glyphs(fsl.PooledEpisodes):
    """Characters of one to four random strokes, (1, 28, 28), ink 1 on background 0.

    Classes: `glyph0000` .. `glyph1799`, 1200 to train, 200 to validate, 400 to test. They are drawn
    in seconds and then kept in the cache. The drawings of a class differ in the shape of each
    stroke, in slant, size, place and pen width: nearest neighbour on raw pixels solves about half
    of 5-way 1-shot, a small convolutional MAML more than 0.9.
    """

    name = "glyphs"

    def __init__(
        self,
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[
            int,
            Field(ge=1, description="images to predict per class; n_shot + n_query is at most 20"),
        ] = 15,
        jitter: Annotated[
            float,
            Field(
                ge=0,
                le=2,
                description="how much drawings of a class differ: 0 not at all, 1 as in "
                "handwriting",
            ),
        ] = 1.0,
        alphabet: Annotated[
            int, Field(ge=0, lt=2**63, description="another number gives another set of characters")
        ] = 0,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=(1, strokes.SIDE, strokes.SIDE),
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.jitter, self.alphabet = float(jitter), alphabet

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        return self._characters.select(self._characters.classes[CLASSES[split]])

    @cached_property
    def _characters(self) -> fsl.LabelledPool:
        """All classes of all splits."""
        n_classes = CLASSES["test"].stop
        key = content_key(
            "glyphs", Path(strokes.__file__), n_classes, PER_CLASS, self.jitter, self.alphabet
        )
        return fsl.LabelledPool.cached(key, lambda: self._draw(n_classes))

    def _draw(self, n_classes: int) -> fsl.LabelledPool:
        images = torch.from_numpy(
            strokes.draw_characters(n_classes, PER_CLASS, self.jitter, self.alphabet)
        )
        names = tuple(f"glyph{i:04d}" for i in range(n_classes))
        return fsl.LabelledPool(images.flatten(0, 1), names, (PER_CLASS,) * n_classes)


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Glyphs)

"""What every source of Omniglot shares: its files, its classes, their rotations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import resources
from itertools import chain
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fsl_core.data.draws import draw_bits
from fsl_core.data.pool import LabelledPool
from fsl_core.data.source import Split
from fsl_core.episode import Episode, LabelledSet

FOLDER = "omniglot-py"


PER_CLASS = 20


CHECKSUMS = {  # the official file, and the same images, repacked
    "images_background": ("68d2efa1b9178cc56df9314c21c6e718", "af02123a84a003ad6572a03696efa473"),
    "images_evaluation": ("6b91aef0f799c5bb55b94e3f2daec811", "6760a4076b69dd01b974e22695170c84"),
}


EVALUATION = (
    "Angelic/Atemayar_Qelisayer/Atlantean/Aurek-Besh/Avesta/Ge_ez/Glagolitic/Gurmukhi/Kannada"
    "/Keble/Malayalam/Manipuri/Mongolian"
    "/Old_Church_Slavonic_(Cyrillic)/Oriya/Sylheti/Syriac_(Serto)/Tengwar/Tibetan/ULOG"
)
"""Alphabets of images_evaluation.zip; the other 30 are in images_background.zip."""


ClassSplit = Literal["vinyals", "learn2learn", "finn", "no-latin"]
SHUFFLE_SEEDS = {"learn2learn": 42, "finn": 1}
"""Seeds of Python's generator; their splits are 1,100 / 100 / 423 of the shuffled classes."""


def class_lists(split: ClassSplit) -> dict[Split, list[str]]:
    """The names of the classes of each split, such as Latin/character01."""
    texts = resources.files("fsl_core.builtin") / "splits"
    lists = {
        part: (texts / f"omniglot-vinyals-{part}.txt").read_text("utf-8").split()
        for part in get_args(Split)
    }
    if split == "vinyals":
        return lists
    if split == "no-latin":
        names = sorted(chain(*lists.values()))
        latin = [name for name in names if name.startswith("Latin/")]
        others = [name for name in names if not name.startswith("Latin/")]
        return {"train": others, "validation": latin, "test": latin}
    names = sorted(
        chain(*lists.values()),
        key=lambda name: (name.partition("/")[0] in EVALUATION.split("/"), name),
    )
    random.Random(SHUFFLE_SEEDS[split]).shuffle(names)
    return {"train": names[:1100], "validation": names[1100:1200], "test": names[1200:]}


def with_rotations(pool: LabelledPool, degrees: Sequence[int]) -> LabelledPool:
    """Every class once for each angle; `/rot090` and so on is added to its name.

    degrees: multiples of 90, counterclockwise.
    """
    turned = (
        (f"{name}/rot{d:03d}", images.rot90(d // 90, (-2, -1)))
        for name, images in pool.by_class()
        for d in degrees
    )
    return LabelledPool.from_classes(turned)


def turned_classes(episodes: Episode, split: Split, seed: int) -> Episode:
    """Each class of an episode, support and query, turned by 0, 90, 180 or 270 degrees at random.

    A class's turn is a function of (seed, split, index of the episode, label) alone.

    episodes: a batch, as an `EpisodeSource` gives it, of square pictures.
    """
    n_way = int(episodes.support.y.max()) + 1
    bits = draw_bits(seed, f"{split}/turns", episodes.id.tolist(), n_way)
    turns = torch.from_numpy((bits >> np.uint64(62)).astype(np.int64)).to(episodes.id.device)
    support, query = (
        LabelledSet(_turned(part.x, turns.gather(1, part.y)), part.y)
        for part in (episodes.support, episodes.query)
    )
    return Episode(support, query, episodes.id)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """x: (..., channels, side, side).    turns: (...) int64, in right angles, counterclockwise."""
    places = turns[..., None, None, None]
    for turn in (1, 2, 3):
        x = torch.where(places == turn, x.rot90(turn, (-2, -1)), x)
    return x

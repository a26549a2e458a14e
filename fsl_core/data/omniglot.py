"""What every source of Omniglot shares: its files, its classes, their rotations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import resources
from itertools import chain
from typing import Literal, get_args

from fsl_core.data.pool import LabelledPool
from fsl_core.data.source import Split

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


def class_lists(split: Literal["vinyals", "learn2learn"]) -> dict[Split, list[str]]:
    """The names of the classes of each split, such as Latin/character01."""
    texts = resources.files("fsl_core.builtin") / "splits"
    lists = {
        part: (texts / f"omniglot-vinyals-{part}.txt").read_text("utf-8").split()
        for part in get_args(Split)
    }
    if split == "vinyals":
        return lists
    names = sorted(
        chain(*lists.values()),
        key=lambda name: (name.partition("/")[0] in EVALUATION.split("/"), name),
    )
    random.Random(42).shuffle(names)
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

"""Which split a class or an item belongs to, where a data set does not say it.

A hash of the name decides. So what comes or goes moves nothing else, and no two machines differ.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from fsl_core.data.folders import name_bytes, nfc
from fsl_core.data.source import SPLITS, Split
from fsl_core.errors import DataError

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of splits, in small or capital letters, also after `meta`, `meta-` or `meta_`."""

SHARED_OUT_BY = "fsl-core classes 16351"
"""Hashed with the names of classes. Another text would put most classes in another split.

The number is one with which c00 .. c14, the classes of our tests, are shared out as their
fractions say.
"""

SEEDS = 10_000
"""Values of split_seed that are tried when a split has too few classes."""

SplitBy = Annotated[
    Literal["classes", "items"],
    Field(
        description="what is shared out: classes; or the items of every class, so that all splits "
        "have the same classes"
    ),
]
Fractions = Annotated[
    tuple[float, float, float],
    Field(description="shares for train, validation, test; not used if the data says the split"),
]
SplitSeed = Annotated[int, Field(description="another number, other shares of the same size")]


def split_of(name: str) -> Split | None:
    """The split that a name stands for, if any."""
    word = re.sub(r"^meta[-_ ]?", "", nfc(name).casefold())
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def check_fractions(fractions: Sequence[float]) -> None:
    if min(fractions) < 0 or sum(fractions) <= 0:
        raise ValueError(f"fractions: {list(fractions)}. Three numbers >= 0, not all of them 0")


def split_by_name(name: str, fractions: Sequence[float], seed: int) -> Split:
    """The split of a class or item: a function of its name, the fractions and the seed alone.

    fractions: of train, validation and test, of any sum; a split of fraction 0 gets nothing.
    """
    text = name_bytes(f"{SHARED_OUT_BY}/{seed}/{nfc(name)}")
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    u = (bits >> 11) * 2.0**-53  # uniform in [0, 1)
    train, validation, _ = fractions
    if u < train / sum(fractions):
        return "train"
    return "validation" if u < (train + validation) / sum(fractions) else "test"


def refuse_small_shares(
    where: str,
    names: Sequence[str],
    fractions: Sequence[float],
    seed: int,
    needed: Mapping[Split, int],
    by_hand: str,
) -> None:
    """Raise DataError if a split gets fewer of the classes than it needs.

    where:   begins the message.    names: of all classes.    needed: classes of each split in use.
    by_hand: how else classes may be divided; it ends the message.
    """
    own = [split_by_name(name, fractions, seed) for name in names]
    few = [split for split, n in needed.items() if own.count(split) < n]
    if few:
        given = ", ".join(f"{split} {own.count(split)}" for split in SPLITS)
        needs = ", ".join(f"{split} at least {needed[split]}" for split in few)
        raise DataError(
            f"{where}: fractions {list(fractions)} and split_seed {seed} share out its "
            f"{len(names)} classes as {given}; n_way asks for {needs}. "
            f"{_other_shares(names, fractions, needed, by_hand)}"
        )


def _other_shares(
    names: Sequence[str], fractions: Sequence[float], needed: Mapping[Split, int], by_hand: str
) -> str:
    items = "`split_by: items`, which gives every split all classes"
    if len(names) < sum(needed.values()):
        return f"At least {sum(needed.values())} classes, fewer ways, or {items}"
    shares = dict(zip(SPLITS, fractions, strict=True))
    if none := [split for split in needed if not shares[split]]:
        return f"A fraction above 0 for {' and '.join(none)}, or {by_hand}"
    for seed in range(SEEDS):
        own = [split_by_name(name, fractions, seed) for name in names]
        if all(own.count(split) >= n for split, n in needed.items()):
            shared = ", ".join(f"{split} {own.count(split)}" for split in SPLITS)
            return f"`split_seed: {seed}` gives {shared}; or {by_hand}"
    return f"No split_seed below {SEEDS} does: other fractions, more classes, {items}, or {by_hand}"

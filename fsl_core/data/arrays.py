"""Episodes drawn from arrays: items x, labels y and, if there is one, the split of each item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fsl_core.data.cache import cached_tensors, content_key
from fsl_core.data.checked import CHUNK, chunks, first_unfinished, native
from fsl_core.data.decoding import (
    Decode,
    Standardised,
    decode_levels,
    decode_numbers,
    decode_tokens,
)
from fsl_core.data.labels import labels_of, splits_of
from fsl_core.data.mapped import MappedArray
from fsl_core.data.pool import LabelledPool
from fsl_core.data.pooled import PooledEpisodes
from fsl_core.data.shapes import Sampling
from fsl_core.data.sharing import (
    Fractions,
    SplitBy,
    SplitSeed,
    check_fractions,
    refuse_small_shares,
    split_by_name,
)
from fsl_core.data.source import SPLITS, Split
from fsl_core.episode import Range, TaskShape
from fsl_core.errors import DataError

ItemKind = Annotated[
    Literal["auto", "levels", "numbers", "tokens"],
    Field(
        description="levels 0 .. 255 are divided by 255, numbers stay as they are, tokens are ids; "
        "auto: uint8 are levels, other whole numbers tokens, floats numbers"
    ),
]
Standardise = Annotated[
    bool,
    Field(
        description="mean 0 and deviation 1 in the training split: of each feature of a vector, of "
        "each channel of a signal (time, channels) or picture (channels, height, width)"
    ),
]
Look = Callable[[], dict[str, Tensor]]
BY_HAND = "an array `split` with the split you choose for each row"


@dataclass(frozen=True, eq=False)
class LabelledArrays:
    """Items of all splits with their labels.

    where:   what messages call x.
    x:       (n, *item_shape).
    labels:  (n,) row of `classes` of each item.
    split:   (n,) row of SPLITS of each item; None if the data does not say it.
    mapped:  the file of x, if it is not in memory.
    digest:  of the files that all this was read from.
    """

    where: str
    x: Tensor
    labels: np.ndarray
    classes: tuple[str, ...]
    split: np.ndarray | None = None
    mapped: MappedArray | None = None
    digest: str | None = None


class ArraySource(PooledEpisodes):
    """Classification episodes from arrays; a subclass writes `read`.

    If the data does not say the split, a hash of its name puts every class in one (`split_by:
    classes`), or a hash of class and row every item (`items`).
    """

    def __init__(
        self,
        n_way: int | Range,
        n_shot: int | Range,
        n_query: int,
        *,
        input_shape: tuple[int, ...],
        split_by: SplitBy = "classes",
        fractions: Fractions = (0.6, 0.2, 0.2),
        split_seed: SplitSeed = 0,
        standardise: Standardise = False,
        items: ItemKind = "auto",
        items_per_class: int | None = None,
        sampling: Sampling = "episode",
        episodes_per_draw: int = 1,
    ):
        """Options as in recipes; see `fsl show episodes arrays`."""
        check_fractions(fractions)
        if standardise and items == "tokens":
            raise ValueError("standardise: true, and items: tokens. Numbers or levels")
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=input_shape,
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )
        self.split_by, self.fractions, self.split_seed = split_by, fractions, split_seed
        self.standardise, self.items = standardise, items

    @abstractmethod
    def read(self) -> LabelledArrays:
        """All items with their labels; called once. DataError or ShapeError if they do not fit."""

    # -- pools ----------------------------------------------------------------------------------

    def load(self, split: Split) -> LabelledPool:
        pool = replace(self._stored(split), decode=self._decode)
        if self._data.digest is None:
            return pool
        how = (*self._how_shared, self.standardise, self.items)
        return pool.known_by(content_key(self._data.digest, split, *how))

    def known_set(
        self, split: Split, episodes: int, seed: int, task: TaskShape | None = None
    ) -> str | None:
        """Of the files and of how they are drawn from; None for arrays in memory.

        To hash what is drawn takes longer than to judge it.
        """
        if self._data.digest is None:
            return None
        return self.set_key(split, episodes, seed, task or self.task)

    def _stored(self, split: Split) -> LabelledPool:
        """The items of a split before they are decoded."""
        data = self._data
        rows = np.flatnonzero(self._splits == SPLITS.index(split))
        order = rows[np.argsort(data.labels[rows], kind="stable")]
        counts = np.bincount(data.labels[rows], minlength=len(data.classes)).tolist()
        there = [(name, n) for name, n in zip(data.classes, counts, strict=True) if n]
        classes, numbers = tuple(name for name, _ in there), tuple(n for _, n in there)
        return LabelledPool(data.x, classes, numbers, order, mapped=data.mapped)

    @cached_property
    def _data(self) -> LabelledArrays:
        data = self.read()
        if not len(data.x):
            raise DataError(f"{data.where}: no rows. At least one for each item")
        return data

    @cached_property
    def _splits(self) -> np.ndarray:
        """(n,) row of SPLITS of each item."""
        data = self._data
        if data.split is not None:
            return data.split

        def share(name: str) -> int:
            return SPLITS.index(split_by_name(name, self.fractions, self.split_seed))

        if self.split_by == "classes":
            return np.array([share(name) for name in data.classes])[data.labels]
        of_rows = enumerate(data.labels.tolist())
        return np.array([share(f"{data.classes[label]}/row {row}") for row, label in of_rows])

    # -- decoding -------------------------------------------------------------------------------

    @property
    def _kind(self) -> Literal["levels", "numbers", "tokens"]:
        dtype = self._dtype
        if self.items == "auto":
            usual: Literal["numbers", "tokens"] = "numbers" if dtype.is_floating_point else "tokens"
            return "levels" if dtype == torch.uint8 else usual
        found = f"of {dtype}, and items: {self.items}"
        if self.items == "levels" and dtype != torch.uint8:
            raise DataError(f"{self._data.where}: {found}. uint8, or items: numbers")
        if self.items == "tokens" and dtype.is_floating_point:
            raise DataError(f"{self._data.where}: {found}. Whole numbers")
        return self.items

    @property
    def _dtype(self) -> torch.dtype:
        """Of x. A source that knows it without reading x overrides this, so as not to read it."""
        return self._data.x.dtype

    @cached_property
    def _decode(self) -> Decode:
        kind = self._kind
        self._refuse_bad_items()
        if not self.standardise:
            return {
                "levels": decode_levels,
                "numbers": decode_numbers,
                "tokens": decode_tokens,
            }[kind]
        if kind == "tokens":
            raise DataError(f"{self._data.where}: token ids, and standardise: true. Numbers")
        train = self._stored("train")
        kept = self._remembered("moments", lambda: moments(train), *self._how_shared)
        return Standardised(kept["mean"], kept["deviation"])

    @property
    def _how_shared(self) -> tuple[str | float, ...]:
        return (self.split_by, *self.fractions, self.split_seed)

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        """Token ids are below this number, the largest id of all splits plus one."""
        if self._kind != "tokens":
            return None
        self._refuse_bad_items()
        return int(self._facts["high"]) + 1

    @cached_property
    def _facts(self) -> Mapping[str, Tensor]:
        data = self._data
        return self._remembered("facts", lambda: facts(data.x, data.mapped))

    def _refuse_bad_items(self) -> None:
        where, tokens = self._data.where, self._kind == "tokens"
        if (row := int(self._facts["unfinished"])) >= 0:
            raise DataError(f"{where}, row {row}: not a finite number. Finite numbers")
        if tokens and (row := int(self._facts["negative"])) >= 0:
            raise DataError(
                f"{where}, row {row}: a token id below 0. Ids from 0; or items: numbers"
            )

    def _remembered(self, what: str, look: Look, *how: str | float) -> Mapping[str, Tensor]:
        """What a look at all of x gives; kept for a file that is larger than memory."""
        data = self._data
        if data.mapped is None or data.digest is None:
            return look()
        return cached_tensors(f"{what}-{content_key(data.digest, *how)}", look)[0]

    # -- checks ---------------------------------------------------------------------------------

    def check_splits(self, wanted: Mapping[Split, TaskShape]) -> None:
        if self._data.split is None and self.split_by == "classes":
            needed = {split: self.ways_needed(task) for split, task in wanted.items()}
            refuse_small_shares(
                f"episodes {self.name!r}: {self._data.where}",
                self._data.classes,
                self.fractions,
                self.split_seed,
                needed,
                BY_HAND,
            )
        super().check_splits(wanted)


class ArrayEpisodes(ArraySource):
    """Episodes from arrays or tensors in memory, for use from Python.

    >>> x, y = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 10
    >>> source = ArrayEpisodes(x, y, n_way=2, n_shot=1, n_query=3, split_by="items")
    >>> source.batch("train", [0], seed=0).query.x.shape
    torch.Size([1, 6, 8])
    """

    name = "arrays"

    def __init__(
        self,
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor,
        split: np.ndarray | None = None,
        *,
        n_way: int | Range = 5,
        n_shot: int | Range = 1,
        n_query: int = 15,
        **options: Any,
    ):
        """x: (n, *item_shape).    y: (n,) class numbers or names.    split: (n,), as in a file.

        options: split_by, fractions, split_seed, standardise, items, items_per_class, sampling,
            episodes_per_draw, as in recipes.
        Raises ShapeError or DataError, which names the row.
        """
        where = "ArrayEpisodes"
        tensor = x if isinstance(x, Tensor) else torch.as_tensor(native(f"{where}: x", x))
        super().__init__(n_way, n_shot, n_query, input_shape=tuple(tensor.shape[1:]), **options)
        labels, classes = labels_of(f"{where}: y", np.asarray(y), len(tensor))
        rows = None if split is None else splits_of(f"{where}: split", split, len(tensor))
        self._given = LabelledArrays(f"{where}: x", tensor, labels, classes, rows)

    def read(self) -> LabelledArrays:
        return self._given


def facts(x: Tensor, mapped: MappedArray | None) -> dict[str, Tensor]:
    """The first row that is not finite and the first that is negative, -1 if none; the largest id.

    `negative` and `high` are of whole numbers alone.
    """
    unfinished, negative, high = -1, -1, -1
    for start, part in chunks(x, mapped):
        if part.is_floating_point():
            row = first_unfinished(part)
            if row is not None:
                unfinished = start + row
                break
        elif part.numel():
            high = max(high, int(part.max()))
            if negative < 0 and int(part.min()) < 0:
                negative = start + int((part.reshape(len(part), -1) < 0).any(1).nonzero()[0])
    found = {"unfinished": unfinished, "negative": negative, "high": high}
    return {name: torch.tensor(value) for name, value in found.items()}


def moments(pool: LabelledPool) -> dict[str, Tensor]:
    """Mean and deviation of each feature, or channel, over all items of a pool; float64.

    A deviation of zero becomes one, so that a constant feature becomes zero.
    """
    places = np.argsort(pool.order) if pool.order is not None else np.arange(len(pool))
    step = max(1, CHUNK // max(1, pool.items[:1].nbytes))
    axes = _all_but_features(pool.items.ndim)
    shift: Tensor | None = None
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(places), step):
        part = pool.take(places[start : start + step]).double()
        if shift is None:  # near the mean, so that squares do not lose their digits
            shift = part.mean(axes, keepdim=True)
        part = part - shift
        count += part.numel() // shift.numel()
        total = total + part.sum(axes, keepdim=True)
        squares = squares + part.square().sum(axes, keepdim=True)
    if shift is None:
        raise DataError("standardise: no item in the training split. A split with items")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return {
        "mean": (shift + mean)[0],
        "deviation": torch.where(deviation > 0, deviation, torch.ones(()).double())[0],
    }


def _all_but_features(ndim: int) -> tuple[int, ...]:
    """Axes of (n, *item_shape) to take a mean over.

    The features of a vector and the channels of (time, channels) come last, those of (channels,
    height, width) first.
    """
    features = 1 if ndim >= 4 else ndim - 1
    return tuple(axis for axis in range(ndim) if axis == 0 or axis != features)

"""Your arrays: feature vectors, signals, token ids or pictures in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

import fsl_core as fsl
from fsl_core.data.array_files import StoredArray, open_arrays
from fsl_core.data.arrays import ArraySource, ItemKind, LabelledArrays, Standardise
from fsl_core.data.cache import content_key
from fsl_core.data.labels import labels_of, splits_of, text_of
from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
from fsl_core.data.sharing import Fractions, SplitBy, SplitSeed
from fsl_core.text import printable

GIB = 1 << 30


class Arrays(ArraySource):
    """Items `x`, labels `y` and perhaps `split` from a .npz or .safetensors file, or .npy files.

    x:     (n, *item_shape): feature vectors (d,), signals (time, channels), token ids (length,) or
           pictures (channels, height, width).
    y:     (n,) class numbers from 0, or names.
    split: (n,) train, validation or test, or 0, 1 or 2. Without it, classes are shared out as those
           of `image-folder`, or items by `split_by: items`: then all splits have the same classes.
    classes: (of a .npz file) names of the class numbers.

    Numbers become float32. Token ids stay int64, and the backbone has to embed them.
    """

    name = "arrays"

    def __init__(
        self,
        file: Annotated[
            Path,
            Field(description=".npz or .safetensors with x and y, or .npy of x and `labels`"),
        ],
        n_way: Ways = 5,
        n_shot: Shots = 1,
        n_query: Annotated[int, Field(ge=1, description="items to predict per class")] = 15,
        labels: Annotated[
            Path | None, Field(description=".npy of y, if `file` is a .npy of x")
        ] = None,
        splits: Annotated[
            Path | None, Field(description=".npy of split, if `file` is a .npy of x")
        ] = None,
        split_by: SplitBy = "classes",
        fractions: Fractions = (0.6, 0.2, 0.2),
        split_seed: SplitSeed = 0,
        standardise: Standardise = False,
        items: ItemKind = "auto",
        map_above: Annotated[
            float,
            Field(
                ge=0,
                description="GiB from which on x stays in its file, and only what is drawn is read",
            ),
        ] = 2.0,
        items_per_class: ItemsPerClass = None,
        sampling: Sampling = "episode",
        episodes_per_draw: EpisodesPerDraw = 1,
    ):
        self.file = Path(file).expanduser()
        beside = {"y": labels, "split": splits}
        self.beside = {key: Path(path).expanduser() for key, path in beside.items() if path}
        self.map_above = map_above
        self._arrays = _open(self.file, self.beside)
        super().__init__(
            n_way,
            n_shot,
            n_query,
            input_shape=self._arrays["x"].shape[1:],
            split_by=split_by,
            fractions=fractions,
            split_seed=split_seed,
            standardise=standardise,
            items=items,
            items_per_class=items_per_class,
            sampling=sampling,
            episodes_per_draw=episodes_per_draw,
        )

    def read(self) -> LabelledArrays:
        x, y, split = (self._arrays.get(name) for name in ("x", "y", "split"))
        assert x is not None
        assert y is not None  # _open has looked
        mapped = x.mapped() if x.nbytes > self.map_above * GIB else None
        n, names = x.shape[0], self._names()
        found, classes = labels_of(y.where, y.numpy(), n, names)
        rows = None if split is None else splits_of(split.where, split.numpy(), n)
        items = x.tensor() if mapped is None else mapped.tensor
        return LabelledArrays(x.where, items, found, classes, rows, mapped, self._digest())

    @property
    def _dtype(self) -> torch.dtype:
        return self._arrays["x"].kept_as

    def _names(self) -> tuple[str, ...]:
        names = self._arrays.get("classes")
        return () if names is None else tuple(map(text_of, np.ravel(names.numpy())))

    def _digest(self) -> str:
        """Of the files; they are read for it if they are not known in this state."""
        files = [self.file, *self.beside.values()]
        return content_key("arrays", *files, under=self.file.parent)


def _open(file: Path, beside: Mapping[str, Path]) -> dict[str, StoredArray]:
    """x, y and what else there is. Raises DataError if one of the two is missing."""
    arrays = open_arrays(file)
    if "" in arrays:
        arrays = {"x": arrays[""]}
    for name, path in beside.items():
        found = open_arrays(path)
        if "" not in found or name in arrays:
            raise fsl.DataError(
                f"{printable(path)}: beside {file.name}. A .npy file, with .npy of x"
            )
        arrays[name] = found[""]
    if missing := [name for name in ("x", "y") if name not in arrays]:
        held = ", ".join(map(printable, arrays)) or "nothing"
        fit = "Arrays x and y; the option `labels` names y for a .npy of x"
        raise fsl.DataError(f"{printable(file)}: holds {held}, not {' and '.join(missing)}. {fit}")
    if not arrays["x"].shape:
        raise fsl.ShapeError(f"{arrays['x'].where}: a single number. Expected (n, *item_shape)")
    return arrays


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Arrays)

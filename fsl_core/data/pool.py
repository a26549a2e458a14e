"""Labelled items held in memory or mapped: what episodes are drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fsl_core.data.cache import cached_tensors, content_key, tensors_digest
from fsl_core.data.checked import Items, class_items
from fsl_core.data.decoding import Decode, decode_by_type, decode_key, refuse_type
from fsl_core.data.mapped import MappedArray
from fsl_core.errors import DataError, ShapeError


@dataclass(frozen=True, eq=False)
class LabelledPool:
    """The items of one split: pictures, feature vectors, signals, token ids.

    items:   (n, *item_shape), of any type that `decode` takes, sorted by class.
    classes: the class names, all different.
    counts:  items of each class, in the order of `classes`; their sum is n.
    order:   (n,) row of `items` of each item, for items that are not sorted or of other splits too;
        default: 0 .. n - 1.
    decode:  what makes of stored items those that a backbone takes; default: by their type.
    mapped:  the file that `items` lie in, if they are not in memory. They then stay there, and only
        what is drawn comes to a device.
    """

    items: Tensor
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    order: np.ndarray | None = None
    decode: Decode = decode_by_type
    mapped: MappedArray | None = None

    def __post_init__(self) -> None:
        if self.items.ndim < 1:
            raise ShapeError("LabelledPool: items: a single number. Expected (n, *item_shape)")
        refuse_type("LabelledPool", self.items.dtype)
        n = len(self)
        if len(self.classes) != len(self.counts) or sum(self.counts) != n:
            found = (
                f"{n} items, {len(self.classes)} classes, "
                f"{len(self.counts)} counts with sum {sum(self.counts)}"
            )
            raise ShapeError(
                f"LabelledPool: {found}. "
                "Expected one count a class, with the number of items as their sum"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DataError(f"LabelledPool: class {twice!r} is there twice. Every class once")

    def __len__(self) -> int:
        return len(self.items) if self.order is None else len(self.order)

    @classmethod
    def from_classes(cls, items: Iterable[tuple[str, Items]]) -> LabelledPool:
        """A pool of (class name, (count, *item_shape)) pairs, in their order.

        Items of a class are an array, a tensor, or a list of them.
        Raises ShapeError or DataError, which names class and item, for items of another shape or
        type, and for numbers that are not finite.
        """
        parts: list[Tensor] = []
        names: list[str] = []
        for name, found in items:
            names.append(name)
            parts.append(class_items(name, found, parts[0] if parts else None))
        counts = tuple(map(len, parts))
        if not parts:
            return cls(torch.empty(0, 1, 0, 0, dtype=torch.uint8), (), ())
        return cls(_concatenated(parts), tuple(names), counts)

    @classmethod
    def cached(cls, key: str, build: Callable[[], LabelledPool]) -> LabelledPool:
        """The pool kept on disk under this `content_key`, or the one that `build` makes.

        A pool that was built is then kept. One with a `decode` of its own is not kept whole: give
        it after this.
        """
        # Not under the bare key, where earlier versions kept names in another form.
        name = f"pool-{key}"
        kept, digest = cached_tensors(name, lambda: build()._tensors, check=cls._from_tensors)
        return cls._from_tensors(kept)._known_by(digest)  # computed to check what was kept

    @cached_property
    def offsets(self) -> np.ndarray:
        """(n_classes,) place of each class's first item."""
        return np.cumsum([0, *self.counts[:-1]])

    @cached_property
    def digest(self) -> str:
        """A hash of items, their decoding, class names and counts; the same on every device."""
        digest, key = tensors_digest(self._tensors), decode_key(self.decode)
        return content_key(digest, key) if key else digest

    def take(self, places: np.ndarray) -> Tensor:
        """The stored items at these places, 0 .. n - 1 in the order of the classes; a copy."""
        rows = places if self.order is None else self.order[places]
        if self.mapped is not None:
            return self.mapped.take(rows)
        if self.items.device.type != "cpu" or self.items.dtype == torch.bfloat16:
            return self.items[torch.from_numpy(rows).to(self.items.device)]
        # NumPy stays on this thread: to wake torch's threads takes longer than the work.
        return torch.from_numpy(self.items.numpy().take(rows, axis=0))

    def inputs(self, places: np.ndarray) -> Tensor:
        """The items at these places as a backbone takes them, (len(places), *input_shape)."""
        return self.decode(self.take(places))

    def by_class(self) -> Iterator[tuple[str, Tensor]]:
        """Every class name with its stored items, (count, *item_shape)."""
        if self.order is None:
            return zip(self.classes, self.items.split(self.counts), strict=True)
        places = np.split(np.arange(len(self)), self.offsets[1:])
        return zip(self.classes, map(self.take, places), strict=True)

    def select(self, classes: Iterable[str]) -> LabelledPool:
        """The pool of these classes alone, in this order. Raises KeyError if one is not here."""
        items = dict(self.by_class())
        selected = LabelledPool.from_classes((name, items[name]) for name in classes)
        return replace(selected, decode=self.decode)

    def to(self, device: torch.device | str) -> LabelledPool:
        """The pool with its items on this device; the same pool if they stay in their file."""
        if self.mapped is not None:
            return self
        moved = replace(self, items=self.items.to(device))
        return moved._known_by(self.digest) if "digest" in self.__dict__ else moved

    def known_by(self, digest: str) -> LabelledPool:
        """The same pool with this digest, for one that is known by its file."""
        return replace(self)._known_by(digest)

    def _known_by(self, digest: str) -> LabelledPool:
        self.__dict__["digest"] = digest
        return self

    @classmethod
    def _from_tensors(cls, tensors: Mapping[str, Tensor]) -> LabelledPool:
        """What `_tensors` gave. Raises ValueError, KeyError or DataError for anything else."""
        found = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
        wanted = {"classes": (torch.uint8, 1), "counts": (torch.int64, 1)}
        if {name: found.get(name) for name in wanted} != wanted or len(found) != 3:
            raise ValueError(f"tensors {sorted(found)}, not those of a pool")
        names = json.loads(bytes(tensors["classes"].numpy()))
        counts = tuple(tensors["counts"].tolist())
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not named or min(counts, default=0) < 0:
            raise ValueError("not the names and counts of a pool")
        return cls(tensors["images"], tuple(names), counts)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        names = json.dumps(self.classes).encode("ascii")  # escapes what is no Unicode, too
        return {
            # Under this name pools are in the caches of users and in the digests of their runs.
            "images": self.items if self.order is None else self.take(np.arange(len(self))),
            "classes": torch.frombuffer(bytearray(names), dtype=torch.uint8),
            "counts": torch.tensor(self.counts, dtype=torch.int64),
        }


def _concatenated(parts: list[Tensor]) -> Tensor:
    """`torch.cat(parts)`, which empties the list as it goes: not two copies of everything."""
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole

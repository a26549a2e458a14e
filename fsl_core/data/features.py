"""Frozen backbones: features of a pool computed once, kept on disk, and drawn from as items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fsl_core.data.cache import cached_tensors, content_key, forget, tensors_digest
from fsl_core.data.pool import LabelledPool
from fsl_core.data.pooled import PooledEpisodes
from fsl_core.data.source import EpisodeSource, Split, SplitContents
from fsl_core.data.work import reported
from fsl_core.episode import TaskShape
from fsl_core.errors import DataError
from fsl_core.nn.arithmetic import arithmetic

Precision = Literal["float32", "half"]
TOGETHER = 32
"""Items mapped at a time; always the same, because sums may be rounded otherwise in other sizes."""
PART = 32 * TOGETHER
"""Items whose features are kept at a time while a pool is mapped."""
SAMPLE = 20
"""Items of a class that its part of the mean of the training classes is taken over."""
TOLERANCE = 1e-3
"""Of features of an item among others and alone, relative to the largest."""


class _Shared:
    """Holds a module that is never changed, so that copies of its owner need not copy it."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, memo: object) -> _Shared:
        return self


class FrozenBackbone(nn.Module):
    """A backbone that is never trained: features pass through it, other items become features.

    (n, *item_shape) or (n, feature_dim) -> (n, feature_dim)

    It computes in evaluation mode and without a graph. Its weights are no part of any checkpoint,
    which holds their digest instead: weights that are loaded beside others are refused.

    item_shape: of what the backbone takes.    norm: `frozen`, for result rows.
    precision:  half: computed under bfloat16 autocast, kept in float16.
    ValueError if features of an item depend on the other items of the call, as with a batch norm
    in training mode, or if features cannot be told from items.
    """

    norm = "frozen"
    weights_digest: Tensor
    training_mean: Tensor
    prepare: Callable[[Tensor], Tensor] | None = None

    def __init__(self, backbone: nn.Module, item_shape: tuple[int, ...], precision: Precision):
        super().__init__()
        self.feature_dim: int = backbone.feature_dim  # type: ignore[assignment]
        self.item_shape, self.precision = tuple(item_shape), precision
        backbone = backbone.requires_grad_(False).eval()
        # A fifth quicker on a CPU, and twice as quick in bfloat16.
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._held = _Shared(backbone)
        if self.item_shape == (self.feature_dim,):
            raise ValueError(
                f"frozen: items and features both of length {self.feature_dim}, which cannot be "
                "told apart. frozen: false, or features of another length"
            )
        self._require_apart()
        self.digest = content_key(
            tensors_digest(backbone.state_dict()), repr(backbone), TOGETHER, precision
        )
        digest = torch.tensor(list(bytes.fromhex(self.digest)), dtype=torch.uint8)
        self.register_buffer("weights_digest", digest)

    def want_mean(self, prepare: Callable[[Tensor], Tensor]) -> None:
        """Have the mean of the training classes as `training_mean`, (feature_dim,).

        An adapter asks for it in its constructor. It is zero until data is read, and in checkpoints
        from then on.

        prepare: what is done to features before their mean is taken.
        """
        self.prepare = prepare
        device = self.weights_digest.device
        self.register_buffer("training_mean", torch.zeros(self.feature_dim, device=device))

    @property
    def backbone(self) -> nn.Module:
        """What computes the features."""
        return self._held.module

    @property
    def notes(self) -> list[str]:
        """What a user should know of its weights."""
        return list(getattr(self.backbone, "notes", ()))

    @property
    def weights(self) -> object:
        """Where its weights came from, if it says so."""
        return getattr(self.backbone, "weights", None)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) == (self.feature_dim,):
            return x
        return self.embed(x)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """(n, *item_shape) -> (n, feature_dim), float32, or as `precision` says."""
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        with _autocast(x.device, self.precision), arithmetic(x.device):
            features = self.backbone(x)
        return features.half().float() if self.precision == "half" else features

    def _require_apart(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(3, *self.item_shape, generator=generator)
        among = self.embed(x)[:1]
        try:
            alone = self.embed(x[:1])
        except ValueError:  # of a norm that wants two values
            alone = torch.full_like(among, torch.inf)
        if (among - alone).abs().max() > TOLERANCE * among.abs().max().clamp(min=1e-6):
            raise ValueError(
                "frozen: features of an item depend on the items beside it, as with a batch norm "
                "in training mode, so they cannot be computed once. norm: running, group or none, "
                "or frozen: false"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenBackbone:
        self.backbone._apply(fn, recurse)  # to a device, or to another type of numbers
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        there, errors = state_dict.get(f"{prefix}weights_digest"), rest[-1]
        if there is not None and not torch.equal(there.cpu(), self.weights_digest.cpu()):
            found, own = (bytes(t.tolist()).hex()[:12] for t in (there, self.weights_digest))
            errors.append(f"made with other weights of the frozen backbone ({found}, not {own})")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.item_shape} -> {self.feature_dim}"


@contextmanager
def _autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "half"):
        yield


class FeatureEpisodes(PooledEpisodes):
    """The episodes of another source, with features of a frozen backbone in place of its items.

    They are the same episodes: of the same classes and items in the same order. A pool is mapped
    when it is first needed, and kept in the cache under its digest and that of the backbone.

    ValueError if the source has no pools, or changes its training items at random.
    """

    name = "features"

    def __init__(self, source: EpisodeSource, backbone: FrozenBackbone, further: bool = False):
        """further: one more source to judge on; its classes are not those of training."""
        if not isinstance(source, PooledEpisodes):
            raise ValueError(
                f"frozen: episodes {source.name!r} draw new items each time, of which there are no "
                "features to keep. Episodes from pools of items, or frozen: false"
            )
        if source.augments:
            raise ValueError(
                "frozen: the features of an item are computed once, and `augment` changes it each "
                "time that it is drawn. augment: none, or frozen: false"
            )
        task = source.task
        shape = (backbone.feature_dim,)
        super().__init__(task.n_way, task.n_shot, task.n_query, input_shape=shape)
        self.items, self.backbone, self.further = source, backbone, further
        self.name = source.name  # type: ignore[misc]  # of an object, for messages
        self.task, self.tasks = replace(task, input_shape=shape), source.tasks
        self.draw_sizes_as(source)

    def load(self, split: Split) -> LabelledPool:
        pool = self.items.pool(split)
        if not len(pool):
            return LabelledPool.from_classes([])
        key = content_key("features", pool.digest, self.backbone.digest)

        def build() -> LabelledPool:
            features = embed_pool(pool, self.backbone, f"features of split {split!r}", key)
            parts = features.split(pool.counts)
            return LabelledPool.from_classes(zip(pool.classes, parts, strict=True))

        mapped = LabelledPool.cached(key, build)
        forget(part_keys(key, len(pool)))
        return mapped.known_by(key)  # rounding differs between machines, and the data is the same

    def check_splits(self, wanted: Mapping[Split, TaskShape]) -> None:
        super().check_splits(wanted)
        if self.backbone.prepare is not None and not self.further:
            features = self._sample("train").to(self.backbone.training_mean.device)
            mean = self.backbone.prepare(features).mean(0)
            self.backbone.training_mean.copy_(mean)

    def _sample(self, split: Split) -> Tensor:
        """Features of the first items of each class, float32."""
        pool = self.items.pool(split)
        each = [
            np.arange(o, o + min(n, SAMPLE)) for o, n in zip(pool.offsets, pool.counts, strict=True)
        ]
        places = np.concatenate(each)
        key = content_key("sample of features", pool.digest, self.backbone.digest, SAMPLE)
        what = f"features of {SAMPLE} items of each class of split {split!r}"

        def build() -> dict[str, Tensor]:
            with reported(what, len(places)) as advance:
                return {"features": _embedded(pool, places, self.backbone, what, advance)}

        return cached_tensors(key, build)[0]["features"].float()

    def inspect(self, split: Split, digest: bool = True) -> SplitContents:
        found = self.items.inspect(split, digest=False)
        return replace(found, digest=self.pool(split).digest if digest else None)

    def known_set(
        self, split: Split, episodes: int, seed: int, task: TaskShape | None = None
    ) -> str:
        """That of the episodes of items, so that any backbone may be compared pair by pair.

        It is kept beside the features: to draw and hash the items takes longer than to judge them.
        """
        task = task or self.task
        key = self.items.set_key(split, episodes, seed, task)

        def build() -> dict[str, Tensor]:
            found = bytes.fromhex(self.items.hash_of_set(split, episodes, seed, task))
            return {"hash": torch.tensor(list(found), dtype=torch.uint8)}

        return bytes(cached_tensors(key, build)[0]["hash"].tolist()).hex()

    def to(self, device: torch.device | str) -> FeatureEpisodes:
        self.items.to(device)
        super().to(device)
        return self

    @property
    def item_task(self) -> TaskShape:
        return self.items.item_task

    def decode(self, file: Path) -> Tensor:
        return self.items.decode(file)


def embed_pool(pool: LabelledPool, backbone: FrozenBackbone, what: str, key: str) -> Tensor:
    """(n, feature_dim) features of all items in their order, float32 or float16, on the CPU.

    They are kept part by part, so that a process that is stopped loses one part at most.

    what: is being computed, for the reporter.    key: parts are kept under it and their number.
    DataError for a feature that is not finite.
    """
    parts = []
    with reported(what, len(pool)) as advance:
        for k, part_key in enumerate(part_keys(key, len(pool))):
            places = np.arange(k * PART, min((k + 1) * PART, len(pool)))

            def build(places: np.ndarray = places) -> dict[str, Tensor]:
                return {"features": _embedded(pool, places, backbone, what, advance)}

            parts.append(cached_tensors(part_key, build)[0]["features"])
    return torch.cat(parts)


def embed_images(backbone: FrozenBackbone, images: Tensor) -> Tensor:
    """(n, channels, size, size) uint8 -> (n, feature_dim) float32 on the CPU; kept on disk."""
    key = content_key("features of images", backbone.digest, tensors_digest({"images": images}))

    def build() -> dict[str, Tensor]:
        pool = LabelledPool(images, ("all",), (len(images),))
        features = embed_pool(pool, backbone, "features of pictures", key)
        return {"features": features}

    found = cached_tensors(key, build)[0]["features"].float()
    forget(part_keys(key, len(images)))
    return found


def part_keys(key: str, n: int) -> list[str]:
    """What the parts of n features are kept under."""
    return [f"{key}-part-{k}" for k in range(-(-n // PART))]


def _embedded(
    pool: LabelledPool,
    places: np.ndarray,
    backbone: FrozenBackbone,
    what: str,
    advance: Callable[[int], None],
) -> Tensor:
    kept = torch.float16 if backbone.precision == "half" else torch.float32
    device = backbone.weights_digest.device
    features = torch.empty(len(places), backbone.feature_dim, dtype=kept)
    for start in range(0, len(places), TOGETHER):
        rows = places[start : start + TOGETHER]
        found = backbone.embed(pool.inputs(rows).to(device)).to(kept)
        if not found.isfinite().all():
            raise DataError(
                f"{what}: not finite, at item {rows[0]} or after it. Other weights, or "
                "precision: float32"
            )
        features[start : start + len(rows)] = found.cpu()
        advance(len(rows))
    return features

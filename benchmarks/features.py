"""Judging episodes of features that a frozen backbone has made, against easyfsl's `evaluate`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

import fsl_core as fsl
from benchmarks import ours
from benchmarks.gradients import summary
from benchmarks.peers import peer
from benchmarks.race import Disagreement, LeftOut, Work, race
from benchmarks.settings import Settings

CLASSES, ITEMS, NUMBERS = 20, 600, 1280
"""As many classes as CIFAR-FS has for its test, with features of EfficientNet-Lite0's size."""

SHAPE = {"n_way": 5, "n_shot": 5, "n_query": 15}
CHECKED = 8


def features(settings: Settings) -> dict:
    """Judging 500 episodes of cached features, 1,280 numbers, 5-way 5-shot 15-query."""
    episodes = 20 if settings.quick else 500
    x, y = _made_up(8 if settings.quick else NUMBERS)
    with _source(x, y) as source:
        entered: dict[str, Work] = {}
        left_out: dict[str, str] = {}
        for name in ("nearest-centroid", "ridge"):
            try:
                learner = ours.learner(source.task, ("identity", {}), (name, {}))
            except LeftOut as reason:
                left_out[f"ours, {name}"] = str(reason)
                continue
            judge = partial(fsl.evaluate, learner, source, episodes=episodes, progress=False)
            entered[f"ours, {name}"] = judge
        try:
            easyfsl = peer("easyfsl")
            entered["easyfsl"] = easyfsl.judging(x, y, episodes, **SHAPE)
            _check(source, easyfsl)
        except LeftOut as reason:
            left_out["easyfsl"] = str(reason)
        return summary(race(entered, settings.budget, settings.rounds, settings.block), left_out)


def _made_up(numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of length 1 around a centre for each class, (CLASSES * ITEMS, numbers)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 1, numbers, generator=generator)
    x = centres + 3 * torch.randn(CLASSES, ITEMS, numbers, generator=generator)
    y = torch.arange(CLASSES).repeat_interleave(ITEMS)
    return torch.nn.functional.normalize(x.flatten(0, 1), dim=1), y


@contextmanager
def _source(x: torch.Tensor, y: torch.Tensor) -> Iterator[fsl.EpisodeSource]:
    """Episodes of these features, all of whose classes are test classes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npz"
        np.savez(file, x=x.numpy(), y=y.numpy(), split=np.full(len(y), "test"))
        yield ours.build("episodes", "arrays", {"file": str(file), **SHAPE})


def _check(source: fsl.EpisodeSource, easyfsl) -> None:
    """The same episodes get the same labels from both."""
    learner = ours.learner(source.task, ("identity", {}), ("nearest-centroid", {})).eval()
    for episode in source.batch("test", range(CHECKED), seed=0).unbatch():
        own = learner.adapt(episode)(episode.query.x).argmax(-1)
        if not torch.equal(own, easyfsl.labels(episode)):
            raise Disagreement(f"easyfsl labels episode {int(episode.id)} otherwise")

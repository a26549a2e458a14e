"""Batches of 5 to 20 ways: groups of one shape by vmap against one task after another.

    python benchmarks/shapes.py [--tasks 64] [--ways 5 20]

`ridge` on features that are drawn at random, so that what is timed is the inner loop. Needs
fsl-kernel-closed-form. Times are of the process, so that others on the machine count little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

import fsl_core as fsl
from benchmarks.ours import build
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.meta_gradient import MetaGradient

FEATURES, REPEATS = 64, 15


class Features(fsl.EpisodeSource):
    """Normal features around a normal mean of each class."""

    name = "features"

    def __init__(self, ways: tuple[int, int], n_shot: int = 5, n_query: int = 10):
        varies = fsl.Varies(n_way=ways if ways[0] < ways[1] else None)
        self.task = fsl.TaskShape(
            "classification", ways[1], n_shot, n_query, (FEATURES,), ways[1], varies
        )

    def batch(
        self, split: fsl.Split, indices: Sequence[int], seed: int, task: fsl.TaskShape | None = None
    ) -> fsl.Episode:
        task = task or self.task
        support, query = (
            self._labelled(indices, task.n_way, n) for n in (task.n_shot, task.n_query)
        )
        return fsl.Episode(support, query, torch.tensor([*indices]))

    def _labelled(self, indices: Sequence[int], n_way: int, per_class: int) -> fsl.LabelledSet:
        y = torch.arange(n_way).repeat_interleave(per_class)
        items = [self._items(index, n_way, per_class) for index in indices]
        return fsl.LabelledSet(torch.stack(items), y.expand(len(indices), -1))

    def _items(self, index: int, n_way: int, per_class: int) -> Tensor:
        draw = torch.Generator().manual_seed(index)
        means = torch.randn(n_way, 1, FEATURES, generator=draw)
        noise = torch.randn(n_way, per_class, FEATURES, generator=draw)
        return (means + noise).flatten(0, 1)


class AsTheyAre(nn.Identity):
    feature_dim = FEATURES


def learner_for(task: fsl.TaskShape) -> fsl.Learner:
    backbone = AsTheyAre()
    options = {"learn_regularisation": True}
    return fsl.Learner(backbone, build("adapter", "ridge", options, task=task, backbone=backbone))


def milliseconds(source: Features, tasks: int, execution: Execution) -> float:
    """Of a meta-batch, the median over repeats of other episodes."""
    fitted = Fitting(learner_for(source.task), source.task, learner_for)
    weighting = build("weighting", "uniform", columns={}, tasks=None)
    compute = MetaGradient(fitted, weighting, source.task.loss, execution)
    times = []
    for repeat in range(REPEATS + 2):
        groups = source.groups("train", range(repeat * tasks, (repeat + 1) * tasks), 0)
        started = time.process_time()
        compute(groups)
        times.append(1000 * (time.process_time() - started))
    return median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--ways", type=int, nargs=2, default=[5, 20])
    arguments = parser.parse_args()
    source = Features((arguments.ways[0], arguments.ways[1]))
    torch.set_num_threads(1)
    print(f"ridge on {FEATURES} features, {source.task}, one thread, ms of a meta-batch")
    for tasks in arguments.tasks:
        loop, vmap = (milliseconds(source, tasks, Execution(mode)) for mode in ("loop", "vmap"))
        print(f"{tasks} tasks: loop {loop:.1f}, vmap {vmap:.1f}, {loop / vmap:.2f} times as fast")


if __name__ == "__main__":
    main()

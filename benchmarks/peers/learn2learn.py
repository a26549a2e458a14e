"""learn2learn 0.2.0: `MAML(...).clone()` and `.adapt(loss)`; `PrototypicalClassifier`."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

import fsl_core as fsl
from benchmarks.peers import gradients
from fsl_core.data.vision import torchvision
from fsl_learn2learn.library import import_quietly

l2l = import_quietly()


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Tensor]]:
    learner = l2l.algorithms.MAML(model, lr=inner_lr, first_order=False)
    tasks = episodes.unbatch()

    def run() -> list[Tensor]:
        learner.zero_grad()
        for support, query, _ in tasks:
            clone = learner.clone()
            for _ in range(inner_steps):
                clone.adapt(loss(clone(support.x), support.y))
            loss(clone(query.x), query.y).backward()
        for parameter in learner.parameters():
            parameter.grad.mul_(1 / len(tasks))
        return gradients(model)

    return run


def outer_step(
    model: nn.Module, loss, inner_lr: float, inner_steps: int
) -> Callable[[torch.optim.Optimizer, fsl.Episode], None]:
    """The loop of its MAML examples, for a meta-batch that is drawn already."""
    learner = l2l.algorithms.MAML(model, lr=inner_lr, first_order=False)

    def step(optimizer: torch.optim.Optimizer, episodes: fsl.Episode) -> None:
        optimizer.zero_grad()
        tasks = episodes.unbatch()
        for support, query, _ in tasks:
            clone = learner.clone()
            for _ in range(inner_steps):
                clone.adapt(loss(clone(support.x), support.y))
            loss(clone(query.x), query.y).backward()
        for parameter in learner.parameters():
            parameter.grad.mul_(1 / len(tasks))
        optimizer.step()

    return step


def centroid(model: nn.Module, episodes, loss) -> Callable[[], list[Tensor]]:
    classifier = l2l.nn.PrototypicalClassifier()
    tasks = episodes.unbatch()

    def run() -> list[Tensor]:
        model.zero_grad()
        for support, query, _ in tasks:
            classifier.fit_(model(support.x), support.y)
            (loss(classifier(model(query.x)), query.y) / len(tasks)).backward()
        return gradients(model)

    return run


def tasksets_of_files(root: Path, samples: int, seed: int):
    """The training tasks of its benchmark interface, as its Omniglot example calls it.

    5 ways, 20,000 tasks.
    """
    _accept_unpacked()
    random.seed(seed)
    return l2l.vision.benchmarks.get_tasksets(
        "omniglot",
        train_ways=5,
        train_samples=samples,
        test_ways=5,
        test_samples=samples,
        num_tasks=20000,
        root=str(root),
    ).train


def tasksets_in_memory(root: Path, samples: int, seed: int):
    """The same tasks over an `OnDeviceDataset`: every image decoded once and held as a tensor."""
    _accept_unpacked()
    random.seed(seed)
    dataset = _in_memory(str(root))
    classes = list(range(1623))
    random.shuffle(classes)
    return l2l.data.Taskset(
        l2l.data.FilteredMetaDataset(dataset, labels=classes[:1100]),
        [
            l2l.data.transforms.FusedNWaysKShots(dataset, n=5, k=samples),
            l2l.data.transforms.LoadData(dataset),
            l2l.data.transforms.RemapLabels(dataset),
            l2l.data.transforms.ConsecutiveLabels(dataset),
            l2l.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
        ],
        num_tasks=20000,
    )


@cache
def _in_memory(root: str):
    v1 = import_module("torchvision.transforms")
    to_image = [
        v1.Resize(28, interpolation=v1.InterpolationMode.LANCZOS),
        v1.ToTensor(),
        lambda x: 1.0 - x,
    ]
    return l2l.data.MetaDataset(
        l2l.data.OnDeviceDataset(
            l2l.vision.datasets.FullOmniglot(root, transform=v1.Compose(to_image), download=False)
        )
    )


def _accept_unpacked() -> None:
    """Let torchvision's class not ask for the checksum of zip files.

    They were checked before they were unpacked.
    """
    torchvision().datasets.Omniglot._check_integrity = lambda self: True


def training(model: nn.Module, tasksets, tasks: int, lr: float) -> Callable[[], float]:
    """One iteration of its Omniglot MAML example, 1 shot, one step of 0.5.

    Without the validation tasks that it also computes.
    """
    learner = l2l.algorithms.MAML(model, lr=0.5, first_order=False)
    optimizer = torch.optim.Adam(learner.parameters(), lr)
    loss = nn.CrossEntropyLoss(reduction="mean")

    def iteration() -> float:
        optimizer.zero_grad()
        error_sum = accuracy_sum = 0.0
        for _ in range(tasks):
            clone = learner.clone()
            data, labels = tasksets.sample()
            adapting = torch.zeros(len(data), dtype=torch.bool)
            adapting[::2] = True
            clone.adapt(loss(clone(data[adapting]), labels[adapting]))
            predictions = clone(data[~adapting])
            error = loss(predictions, labels[~adapting])
            error.backward()
            error_sum += error.item()
            accuracy_sum += (predictions.argmax(1) == labels[~adapting]).float().mean().item()
        for parameter in learner.parameters():
            parameter.grad.mul_(1 / tasks)
        optimizer.step()
        return error_sum + accuracy_sum

    return iteration

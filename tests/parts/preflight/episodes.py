"""A plugin of sources of episodes: a sound one, and faulty ones."""

from __future__ import annotations

import torch

import fsl_core as fsl


class Points(fsl.EpisodeSource):
    """Classes are points in the plane, items are points around them."""

    name = "points"

    def __init__(self, n_way: int = 3, n_shot: int = 2, n_query: int = 4):
        self.task = fsl.TaskShape("classification", n_way, n_shot, n_query, (2,), n_way)

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate([self.episode(i, task) for i in indices])

    def episode(self, index, task):
        generator = torch.Generator().manual_seed(index)
        centres = torch.randn(task.n_way, 1, 2, generator=generator)

        def items(per_class):
            x = centres + 0.1 * torch.randn(task.n_way, per_class, 2, generator=generator)
            y = torch.arange(task.n_way).repeat_interleave(per_class)
            return fsl.LabelledSet(x.flatten(0, 1), y)

        return fsl.Episode(items(task.n_shot), items(task.n_query), torch.tensor(index))


class Words(fsl.EpisodeSource):
    """Texts of six token ids; nobody draws from it."""

    name, vocabulary = "words", 20

    def __init__(self):
        self.task = fsl.TaskShape("classification", 3, 2, 4, (6,), 3)

    def batch(self, split, indices, seed, task=None):
        raise NotImplementedError


class NoSource:
    name = "no-source"
    tasks = None

    def to(self, device):
        return self


class NoTask(fsl.EpisodeSource):
    name = "no-task"

    def batch(self, split, indices, seed, task=None):
        raise NotImplementedError


@fsl.hookimpl
def fsl_register_episodes(register):
    for part in list(globals().values()):
        if isinstance(part, type) and "name" in vars(part):
            register(part)

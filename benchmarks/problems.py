"""What is raced.

A learner of ours, the same network as a plain torch model for the peers, and the episodes of one
meta-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import fsl_core as fsl
from benchmarks import ours


@dataclass(frozen=True)
class Problem:
    """One meta-gradient to compute: the mean over the episodes of the gradient of the query loss.

    kind: what a peer has to offer: `maml` or `centroid`.
    model: our learner's network in torch's own layers, with the same weights in the same order of
        parameters. Its normalisation is BatchNorm2d(track_running_stats=False): statistics of the
        batch itself, as our policy `transductive`.
    """

    kind: str
    learner: fsl.Learner
    model: nn.Module
    episodes: fsl.Episode
    loss: Callable[[Tensor, Tensor], Tensor]
    inner_lr: float = 0.0
    inner_steps: int = 0

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Problem:
        """The same problem in another precision or place; modules are moved, not copied."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        (support_x, support_y), (query_x, query_y), ids = self.episodes
        support = fsl.LabelledSet(move(support_x), move(support_y))
        query = fsl.LabelledSet(move(query_x), move(query_y))
        episodes = fsl.Episode(support, query, ids.to(device))
        learner, model = self.learner.to(device, dtype), self.model.to(device, dtype)
        return replace(self, learner=learner, model=model, episodes=episodes)


def sinusoid(tasks: int = 25) -> Problem:
    """MAML on sine waves: MLP 1-40-40-1, 10 shots, 1 step (Finn et al. 2017)."""
    source = ours.build("episodes", "sinusoid", {"n_shot": 10})
    learner = ours.learner(source.task, ("mlp", {}), ("maml", {"inner_lr": 0.01, "inner_steps": 1}))
    model = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    return _problem("maml", source, tasks, learner, model, inner_lr=0.01, inner_steps=1)


def omniglot(
    tasks: int = 16, steps: int = 1, channels: int = 64, n_way: int = 5, n_query: int = 15
) -> Problem:
    """MAML on 28x28 characters: Conv4, 1 shot. Characters are `glyphs`, which need no download."""
    source = ours.build("episodes", "glyphs", {"n_way": n_way, "n_query": n_query})
    maml = ("maml", {"inner_lr": 0.4, "inner_steps": steps})
    learner = ours.learner(source.task, ("conv4", {"channels": channels}), maml)
    model = conv4_model(channels, n_way)
    return _problem("maml", source, tasks, learner, model, inner_lr=0.4, inner_steps=steps)


def published(tasks: int = 32, channels: int = 64) -> Problem:
    """The step of MAML's Omniglot figures (Finn et al. 2017): strides, the mean of the last map.

    5-way, 1 shot and 1 query a class. All weights are adapted, so that any library can race.
    """
    source = ours.build("episodes", "glyphs", {"n_query": 1})
    body = {"channels": channels, "downsample": "stride", "readout": "mean", "norm_eps": 1e-3}
    maml = ("maml", {"inner_lr": 0.4, "inner_steps": 1})
    learner = ours.learner(source.task, ("conv4", body), maml)
    layers: list[nn.Module] = []
    for block, side in enumerate((28, 14, 7, 4)):
        layers += [
            nn.ZeroPad2d((side % 2, 1, side % 2, 1)),
            nn.Conv2d(channels if block else 1, channels, 3, stride=2),
            nn.BatchNorm2d(channels, 1e-3, track_running_stats=False),
            nn.ReLU(),
        ]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, source.task.n_way)
    )
    return _problem("maml", source, tasks, learner, model, inner_lr=0.4, inner_steps=1)


def centroid(tasks: int = 32, channels: int = 64, n_query: int = 15) -> Problem:
    """Nearest centroid on 28x28 characters: Conv4, 5-way 1-shot."""
    source = ours.build("episodes", "glyphs", {"n_query": n_query})
    learner = ours.learner(source.task, ("conv4", {"channels": channels}), ("nearest-centroid", {}))
    return _problem("centroid", source, tasks, learner, _conv4(channels))


def omniglot_fc(tasks: int = 32) -> Problem:
    """The network of learn2learn's Omniglot example, 5-way 1-shot 1-query, 1 step of 0.5."""
    source = ours.build("episodes", "glyphs", {"n_query": 1})
    return _problem(
        "maml", source, tasks, fc_learner(source.task), fc_model(), inner_lr=0.5, inner_steps=1
    )


FC_WIDTHS, FC_EPS = (256, 128, 64, 64), 1e-3


def fc_learner(task: fsl.TaskShape) -> fsl.Learner:
    maml = ("maml", {"inner_lr": 0.5, "inner_steps": 1})
    learner = ours.learner(task, ("mlp", {"hidden": list(FC_WIDTHS), "norm": "transductive"}), maml)
    for module in learner.modules():
        if isinstance(module, fsl.Norm):
            module.eps = FC_EPS
    return learner


def fc_model() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 28 * 28
    for out in FC_WIDTHS:
        layers += [
            nn.Linear(width, out),
            nn.BatchNorm1d(out, FC_EPS, track_running_stats=False),
            nn.ReLU(),
        ]
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 5))


def conv4_model(channels: int, n_way: int) -> nn.Module:
    """Conv4 on 28x28 pictures with a linear head, in torch's own layers."""
    return nn.Sequential(_conv4(channels), nn.Linear(channels, n_way))


def _conv4(channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for block in range(4):
        conv = nn.Conv2d(channels if block else 1, channels, 3, padding=1)
        layers += [
            conv,
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten())


def _problem(
    kind: str,
    source: fsl.EpisodeSource,
    tasks: int,
    learner: fsl.Learner,
    model: nn.Module,
    **inner,
) -> Problem:
    same_weights(model, learner)
    episodes = source.batch("train", range(tasks), seed=0)
    return Problem(kind, learner, model, episodes, source.task.loss, **inner)


@torch.no_grad()
def same_weights(model: nn.Module, learner: nn.Module) -> None:
    """Copy the weights of the second into the first; both list parameters in the same order."""
    for theirs, own in zip(model.parameters(), learner.parameters(), strict=True):
        assert theirs.shape == own.shape, f"{tuple(theirs.shape)} is not {tuple(own.shape)}"
        theirs.copy_(own)

"""From class rows to an update of the linear head."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Head(NamedTuple):
    """Weights of a linear head, or an update of them.

    weight: (n_way, feature_dim).
    bias:   (n_way,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, feature_dim) -> (n, n_way)."""
        return F.linear(features, self.weight, self.bias)


class ClassShared(nn.Module):
    """One network for all classes, (n_way, width) -> Head.

    Row c of the input alone gives row c of the update. The last output is the update of the bias.
    The classes of an episode meet only in what their rows hold of each other.
    """

    def __init__(self, width: int, hidden_size: int, layers: int, feature_dim: int):
        super().__init__()
        self.net = _dense(width, hidden_size, layers, feature_dim + 1)

    def forward(self, rows: Tensor) -> Head:
        update = self.net(rows)
        return Head(update[:, :-1], update[:, -1])


class Flat(nn.Module):
    """All rows as one vector; a network for the weight, another for the bias.

    (n_way, width) -> Head.
    """

    def __init__(self, width: int, hidden_size: int, layers: int, feature_dim: int, n_way: int):
        super().__init__()
        self.weight = _dense(n_way * width, hidden_size, layers, n_way * feature_dim)
        self.bias = _dense(n_way * width, hidden_size, layers, n_way)

    def forward(self, rows: Tensor) -> Head:
        flat = rows.flatten()
        return Head(self.weight(flat).view(len(rows), -1), self.bias(flat))


def _dense(width: int, hidden_size: int, layers: int, outputs: int) -> nn.Sequential:
    """`layers` linear layers with ReLU between them."""
    sizes = [width, *[hidden_size] * (layers - 1), outputs]
    parts = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*parts[:-1])

"""What the hypernetwork sees of a support set: sums over rows, so their order does not matter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import fsl_core as fsl


class EncodedSupport(NamedTuple):
    """A support set in feature space.

    means:  (n_way, feature_dim), features averaged over the shots of a class.
    labels: (n, n_way) one-hot, or (n, output_dim) values.
    shares: (n, n_way), 1 / (the shots of the row's class), and 0 for other classes.
    """

    features: Tensor
    labels: Tensor
    shares: Tensor

    @property
    def means(self) -> Tensor:
        return self.shares.T @ self.features


def encode_labels(features: Tensor, y: Tensor, task: fsl.TaskShape) -> EncodedSupport:
    """A support set from its features and labels.

    features: (n, feature_dim).
    y:        (n,) classes, or (n, output_dim) values; then all rows are one class.
    """
    if task.kind == "regression":
        return EncodedSupport(features, y, features.new_full((len(features), 1), 1 / len(features)))
    labels = fsl.one_hot(y, task.n_way).to(features)
    return EncodedSupport(features, labels, normalize(labels, p=1, dim=0))


class SupportEncoder(nn.Module):
    """A deep set over the classes, each of them a deep set over its items.

    Source: Zaheer et al. 2017, arXiv:1703.06114.

    rows[c]   = mean over the items j of class c of item(features_j, and label_j if labels > 0)
    embedding = mean over the classes c of whole(rows[c])

    labels: length of a label that items carry. With 0, relabelling the classes permutes the rows
            and leaves the embedding as it is.
    """

    def __init__(self, feature_dim: int, labels: int, embedding: int, hidden: int):
        super().__init__()
        self.labelled = labels > 0
        self.item = perceptron(feature_dim + labels, hidden, embedding)
        self.whole = perceptron(embedding, hidden, embedding)

    def forward(self, support: EncodedSupport) -> tuple[Tensor, Tensor]:
        """Rows of the classes, (n_way, embedding), and the embedding of the task, (embedding,)."""
        items = (
            torch.cat([support.features, support.labels], 1) if self.labelled else support.features
        )
        rows = support.shares.T @ self.item(items)
        return rows, self.whole(rows).mean(0)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

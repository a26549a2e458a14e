"""The words of few-shot learning as types: labelled sets, episodes, and the shape of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Predictor = Callable[[Tensor], Tensor]
"""(n, *input_shape) -> (n, output_dim): logits of a classification, values of a regression."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, labels) -> scalar."""


class LabelledSet(NamedTuple):
    """Items with their labels.

    x: (n, *input_shape), float; or int64, if the source has a vocabulary of token ids.
    y: (n,) class indices 0 .. n_way - 1, int64; or (n, output_dim) values, float.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One draw from a task. Rows are sorted by class, n_shot (n_query) rows each.

    A batch of episodes is the same tuple with a leading (meta_batch_size,) axis on every tensor.

    id: () int64, the episode's index in its split, or the number of its task if the source has a
        finite set of tasks.
    """

    support: LabelledSet
    query: LabelledSet
    id: Tensor

    def unbatch(self) -> list[Episode]:
        """The single episodes of a batch, as views."""
        (support_x, support_y), (query_x, query_y), ids = self
        rows = zip(support_x, support_y, query_x, query_y, ids, strict=True)
        return [Episode(LabelledSet(sx, sy), LabelledSet(qx, qy), i) for sx, sy, qx, qy, i in rows]


@dataclass(frozen=True)
class TaskShape:
    """What every episode of a split has in common.

    n_way:       classes per episode; 1 for regression.
    n_shot:      labelled items per class.
    n_query:     unlabelled items per class, which are to be predicted.
    input_shape: of one item, without the batch axis, such as (1, 28, 28).
    output_dim:  of a prediction: n_way for classification.
    """

    kind: Literal["classification", "regression"]
    n_way: int
    n_shot: int
    n_query: int
    input_shape: tuple[int, ...]
    output_dim: int

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits, or mean squared error of values; a scalar."""
        if self.kind == "classification":
            return F.cross_entropy(prediction, y)
        return F.mse_loss(prediction, y)

    @property
    def metric(self) -> Literal["accuracy", "mse"]:
        """What `score` computes; accuracy is better high, mse is better low."""
        return "accuracy" if self.kind == "classification" else "mse"

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Share of right answers, or mean squared error in squared units of y; a scalar."""
        if self.kind == "classification":
            return (prediction.argmax(-1) == y).to(prediction.dtype).mean(-1)
        return F.mse_loss(prediction, y)


def one_hot(y: Tensor, n_way: int) -> Tensor:
    """Class indices (n,) -> (n, n_way) of zeros and ones, float.

    It reads no value, so it works under any order of vmap and grad. `torch.nn.functional.one_hot`
    reads the largest one.

    >>> one_hot(torch.tensor([1, 0]), 3)
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    return (y[..., None] == torch.arange(n_way, device=y.device)).to(torch.get_default_dtype())

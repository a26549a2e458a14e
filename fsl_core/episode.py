"""The words of few-shot learning as types: labelled sets, episodes, and the shape of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl_core.text import in_words

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

    In the support set, classes may have other numbers of rows if `TaskShape.varies` says so.

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


Range = tuple[int, int]
"""The least and the most, both included."""


@dataclass(frozen=True)
class Varies:
    """What episodes of one source differ in; false if they are all of one shape.

    n_way, n_shot, n_query: the range of each, or None if it is the same in every episode.
    class_shots: the classes of one episode may differ in their number of labelled items.
    """

    n_way: Range | None = None
    n_shot: Range | None = None
    n_query: Range | None = None
    class_shots: bool = False

    def __bool__(self) -> bool:
        return self != Varies()


@dataclass(frozen=True)
class TaskShape:
    """What every episode of a split has in common.

    n_way:       classes per episode; 1 for regression. The most, if it varies.
    n_shot:      labelled items per class. The most, if it varies.
    n_query:     unlabelled items per class, which are to be predicted. The most, if it varies.
    input_shape: of one item, without the batch axis, such as (1, 28, 28).
    output_dim:  of a prediction: n_way for classification.
    varies:      which of these differ from one episode to the next. An adapter is built for one
        number of ways and of shots at a time, so it reads `n_way` as it is.
    """

    kind: Literal["classification", "regression"]
    n_way: int
    n_shot: int
    n_query: int
    input_shape: tuple[int, ...]
    output_dim: int
    varies: Varies = Varies()

    def of(
        self, n_way: int | None = None, n_shot: int | None = None, n_query: int | None = None
    ) -> TaskShape:
        """This shape with these numbers in place of its own; what is given does not vary."""
        own, ways = self.varies, self.n_way if n_way is None else n_way
        return replace(
            self,
            n_way=ways,
            n_shot=self.n_shot if n_shot is None else n_shot,
            n_query=self.n_query if n_query is None else n_query,
            output_dim=ways if self.kind == "classification" else self.output_dim,
            varies=Varies(
                own.n_way if n_way is None else None,
                own.n_shot if n_shot is None else None,
                own.n_query if n_query is None else None,
                class_shots=own.class_shots and n_shot is None,
            ),
        )

    @property
    def least(self) -> TaskShape:
        """The smallest that an episode may be; if shots differ between classes, they still do."""
        v = self.varies
        n_shot = None if v.class_shots else v.n_shot and v.n_shot[0]
        return self.of(v.n_way and v.n_way[0], n_shot, v.n_query and v.n_query[0])

    def __str__(self) -> str:
        """Such as `5-way 1-shot 15-query`, or `5..20-way 1..9-shot 3..11-query`."""
        unequal = ", shots differ between classes" if self.varies.class_shots else ""
        parts = [
            f"{in_words(getattr(self.varies, f'n_{part}') or getattr(self, f'n_{part}'))}-{part}"
            for part in ("way", "shot", "query")
        ]
        return " ".join(parts) + unequal

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
        """Share of right answers, or mean squared error in squared units of y.

        A scalar; of a batch of episodes, whose tensors have leading axes, one for each of them.
        """
        if self.kind == "classification":
            return (prediction.argmax(-1) == y).to(prediction.dtype).mean(-1)
        return (prediction - y).square().mean((-2, -1))


def one_hot(y: Tensor, n_way: int) -> Tensor:
    """Class indices (n,) -> (n, n_way) of zeros and ones, float.

    It reads no value, so it works under any order of vmap and grad. `torch.nn.functional.one_hot`
    reads the largest one.

    >>> one_hot(torch.tensor([1, 0]), 3)
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    return (y[..., None] == torch.arange(n_way, device=y.device)).to(torch.get_default_dtype())

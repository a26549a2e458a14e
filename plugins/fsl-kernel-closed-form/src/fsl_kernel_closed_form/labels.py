"""Labels as vectors that a least-squares fit can aim at."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import fsl_core as fsl

Targets = Literal["one-hot", "centred", "plus-minus"]


def label_vectors(y: Tensor, task: fsl.TaskShape, targets: Targets) -> Tensor:
    """(n,) class indices -> (n, n_way), or (n, output_dim) values as they are; float64.

    one-hot:    1 for the class, 0 for others.
    centred:    that minus 1 / n_way.
    plus-minus: 1 and -1.
    """
    if task.kind == "regression":
        return y.double()
    members = fsl.one_hot(y, task.n_way).to(torch.float64)
    if targets == "plus-minus":
        return 2 * members - 1
    return members - 1 / task.n_way if targets == "centred" else members

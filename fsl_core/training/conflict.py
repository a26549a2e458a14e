"""How far the tasks of a meta-batch disagree about the way to go."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def gradient_conflict(gradients: Tensor) -> dict[str, float]:
    """Mean cosine of pairs of tasks' meta-gradients, and the share of pairs with a negative one.

    gradients: (meta_batch_size, P), two tasks or more; a task without a gradient has cosine 0 with
               every other.

    Conflict as a negative cosine: Yu et al. 2020, arXiv:2001.06782.

    >>> gradient_conflict(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    {'gradient_cosine': -0.3333333432674408, 'gradient_conflict': 0.3333333432674408}
    """
    directions = normalize(gradients, dim=1)
    cosines = directions @ directions.T
    first, second = torch.triu_indices(len(cosines), len(cosines), offset=1)
    pairs = cosines[first, second]
    return {
        "gradient_cosine": float(pairs.mean()),
        "gradient_conflict": float((pairs < 0).to(pairs).mean()),
    }

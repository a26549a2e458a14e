"""Named weights as one vector, which a store keeps as a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def flat(weights: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """(P,), the weights of these names one after the other."""
    return torch.cat([weights[name].reshape(-1) for name in names])


def named(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `flat` made a vector of, in the shapes of `like`.

    >>> like = {"w": torch.ones(2, 1), "b": torch.zeros(1)}
    >>> named(flat(like, like), like)["w"].shape
    torch.Size([2, 1])
    """
    parts = vector.split([weight.numel() for weight in like.values()])
    return {
        name: part.view(weight.shape)
        for (name, weight), part in zip(like.items(), parts, strict=True)
    }

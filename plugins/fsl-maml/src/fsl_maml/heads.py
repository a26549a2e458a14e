"""The linear head, and where its meta-trained weights begin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

HeadInit = Annotated[
    Literal["default", "normal"],
    Field(
        description="weights of the head before training: torch's default for a linear layer, or "
        "N(0, 1) with a bias of zero (MAML's code)"
    ),
]


def linear_head(feature_dim: int, output_dim: int, init: HeadInit) -> nn.Linear:
    """(n, feature_dim) -> (n, output_dim)."""
    head = nn.Linear(feature_dim, output_dim)
    if init == "normal":
        nn.init.normal_(head.weight)
        nn.init.zeros_(head.bias)
    return head

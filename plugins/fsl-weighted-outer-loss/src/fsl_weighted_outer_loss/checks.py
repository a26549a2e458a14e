"""Words that every option of this package shares."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Temperature = Annotated[
    float, Field(gt=0, description="large: all tasks alike; small: the first ones alone")
]


def require(condition: bool, weighting: str, message: str) -> None:
    """ValueError `<weighting>: <message>` unless the condition holds."""
    if not condition:
        raise ValueError(f"{weighting}: {message}")


def softmax(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """exp(scores / temperature), summing to one.

    Finite for any finite scores: the largest is taken off first, so nothing overflows.
    """
    return ((scores - scores.max()) / temperature).softmax(0)


def positive_log(values: Tensor) -> Tensor:
    """The logarithm; what is zero or below counts as the smallest normal number."""
    return values.clamp_min(torch.finfo(values.dtype).tiny).log()

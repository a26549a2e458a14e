"""Numbers above zero that may be learned."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn


class Positive(nn.Module):
    """A number above zero: `start`, or a meta-parameter that starts there.

    learned: it is a meta-parameter, trained as its logarithm.
    """

    def __init__(self, start: float, learned: bool):
        super().__init__()
        self.start = start
        self.log = nn.Parameter(torch.tensor(log(start))) if learned else None

    def forward(self) -> Tensor | float:
        return self.start if self.log is None else self.log.exp()

    def extra_repr(self) -> str:
        return f"{self.start:g}" if self.log is None else f"learned from {self.start:g}"

"""The scalars of the inner objective, fixed or trained by the outer loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

Learnable = Literal[
    "starts", "targets", "weights", "slopes", "regularisation", "entropy_weight", "temperature"
]
LOGARITHM = {"entropy_weight"}
"""Numbers above zero that are trained as their logarithm."""


def group_of(name: str) -> str:
    """What `learn` calls a number: own_target and other_target are targets."""
    return f"{name.split('_')[1]}s" if name.startswith(("own_", "other_")) else name


class Numbers(nn.Module):
    """Scalars by name; those of the groups in `learned` are parameters.

    regularisation 0 is never a parameter: the objective has its square, whose derivative is 0
    there.
    """

    def __init__(self, starts: Mapping[str, float], learned: Collection[str]):
        super().__init__()
        self.names = list(starts)
        for name, start in starts.items():
            value = torch.tensor(log(start) if name in LOGARITHM else float(start))
            if group_of(name) in learned and not (name == "regularisation" and start == 0):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in self.names}
        return {n: value.exp() if n in LOGARITHM else value for n, value in own.items()}

    def extra_repr(self) -> str:
        learned = [name for name, _ in self.named_parameters()]
        return f"learned: {', '.join(learned) or 'none'}"

"""Inner learning rates: fixed, or meta-parameters that the outer loop trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

RateKind = Literal["fixed", "scalar", "per-parameter", "per-parameter-and-step", "elementwise"]


class InnerRates(nn.Module):
    """Learning rates of the adapted parameter tensors, all of them `initial` at first.

    fixed                   a number.
    scalar                  one learned rate, ().
    per-parameter           one for each parameter tensor, (tensors,).
    per-parameter-and-step  one for each parameter tensor and step, (steps, tensors): LSLR of
                            MAML++, Antoniou et al. 2019, arXiv:1810.09502. Later steps use the
                            last row.
    elementwise             one for each weight: Meta-SGD, Li et al. 2017, arXiv:1707.09835.

    Learned rates are unconstrained, as in the code of MAML++ and in learn2learn's Meta-SGD:
    training may make them negative. All start alike, as there; MAML++'s code keeps one row more
    than there are steps, which no step uses.
    """

    def __init__(self, kind: RateKind, initial: float, tensors: Sequence[Tensor], steps: int):
        super().__init__()
        self.kind, self.initial = kind, initial
        if kind == "elementwise":
            self.rates = nn.ParameterList(torch.full_like(tensor, initial) for tensor in tensors)
        elif kind != "fixed":
            shape = {"scalar": (), "per-parameter": (len(tensors),)}.get(
                kind, (max(steps, 1), len(tensors))
            )
            self.rate = nn.Parameter(tensors[0].new_full(shape, initial))

    @property
    def one_for_all(self) -> bool:
        """Every parameter tensor has the same rate."""
        return self.kind in ("fixed", "scalar")

    def learned(self) -> dict[str, Tensor]:
        """The meta-parameters, by their names in the adapter."""
        return {f"inner_lr.{name}": rate for name, rate in self.named_parameters()}

    def at(self, step: int, learned: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Rates of this step, one or one for each parameter tensor; None if they are fixed.

        learned: what `learned` returned, or other values by those names.
        """
        if self.kind == "fixed":
            return None
        if self.kind == "elementwise":
            return [learned[f"inner_lr.rates.{i}"] for i in range(len(self.rates))]
        rate = learned["inner_lr.rate"]
        if self.kind == "scalar":
            return [rate]
        row = rate if self.kind == "per-parameter" else rate[min(step, len(rate) - 1)]
        return list(row.unbind())

    def extra_repr(self) -> str:
        return self.kind

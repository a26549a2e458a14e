"""The sum of the tasks' gradients, in their order, over the tasks of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsl_core.engine.ranks import Ranks

Term = Sequence[Tensor | None]
"""A tensor for each parameter; None if no gradient reaches it."""


class Total:
    """Terms are added up as they come; those of later ranks are held until their turn.

    like: a tensor for each place of a term, with its shape, dtype and device.
    """

    def __init__(self, ranks: Ranks, like: Sequence[Tensor]):
        self._ranks, self._like = ranks, like
        self._sum: list[Tensor | None] = [None] * len(like)
        self._held: list[Tensor] = []
        self._reached = [False] * len(like)

    def add(self, term: Term) -> None:
        self._reached = [r or t is not None for r, t in zip(self._reached, term, strict=True)]
        if self._ranks.first:
            self._sum = [_sum(*pair) for pair in zip(self._sum, term, strict=True)]
        else:
            self._held.append(self._flat(term))

    @property
    def reached(self) -> list[bool]:
        """Whether a gradient of this rank's tasks reached each parameter; the others need it."""
        return self._reached

    def of_all(self, reached: Sequence[Sequence[bool]], holders: int) -> list[Tensor | None]:
        """The sum on every rank.

        reached: of each rank.    holders: ranks that have terms; they are the first ones.
        """
        if self._ranks.alone:
            return self._sum
        terms = [self._flat(self._sum)] if self._ranks.first else self._held
        out = torch.empty(
            sum(tensor.numel() for tensor in self._like),
            dtype=self._dtype,
            device=self._like[0].device,
        )
        self._ranks.sum_in_order(terms, out, holders)
        pieces = out.split([tensor.numel() for tensor in self._like])
        anywhere = [any(flags) for flags in zip(*reached, strict=True)]
        return [
            piece.view(tensor.shape).to(tensor.dtype) if any_rank else None
            for piece, tensor, any_rank in zip(pieces, self._like, anywhere, strict=True)
        ]

    def _flat(self, term: Term) -> Tensor:
        # -0.0 and not 0.0: it is what changes no number, the sign of a zero included.
        parts = [
            torch.full_like(like, -0.0) if part is None else part
            for part, like in zip(term, self._like, strict=True)
        ]
        return torch.cat([part.detach().reshape(-1).to(self._dtype) for part in parts])

    @property
    def _dtype(self) -> torch.dtype:
        found = self._like[0].dtype
        for tensor in self._like[1:]:
            found = torch.promote_types(found, tensor.dtype)
        return found


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b

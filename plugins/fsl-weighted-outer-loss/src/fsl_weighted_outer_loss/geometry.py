"""Lengths and angles of the tasks' gradients, from one Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fsl_weighted_outer_loss.checks import require

Columns = Mapping[str, slice]
"""Where each parameter lies in a row of the gradient matrix, as fsl_core.gradient_columns says."""

Part = Annotated[
    str,
    Field(
        description="part of the gradient that is compared: all, head, last-block, or a shell "
        "pattern of parameter names"
    ),
]


class GradientPart:
    """The columns of some parameters: (meta_batch_size, P) -> (meta_batch_size, size of the part).

    part: `all`; `head`, the adapter's head; `last-block`, the last child of the backbone that has
        parameters, or of its last sequence; or a shell pattern such as `backbone.blocks.*`.
    Raises ValueError if it means no parameter.
    """

    def __init__(self, columns: Columns, part: str, weighting: str):
        names = list(columns) if part == "all" else _names(columns, part)
        known = f"all, head, last-block, or a pattern over {', '.join(columns)}"
        require(bool(names), weighting, f"gradient: {part!r}: no such parameter. {known}")
        self.slices = _joined([columns[name] for name in names])

    def __call__(self, gradients: Tensor | None) -> Tensor:
        """gradients: those of `Outcomes`, which a weighting gets if it says that it needs them."""
        if gradients is None:
            raise ValueError("weigh: outcomes without gradients. Those of each task")
        parts = [gradients[:, where] for where in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _names(columns: Columns, part: str) -> list[str]:
    if part == "last-block":
        blocks = {name: _block(name) for name in columns if name.startswith("backbone.")}
        return [name for name, block in blocks.items() if block == list(blocks.values())[-1]]
    pattern = "adapter.head.*" if part == "head" else part
    return [name for name in columns if fnmatchcase(name, pattern)]


def _block(name: str) -> str:
    """backbone.blocks.3.1.scale -> backbone.blocks.3, and backbone.fc.weight -> backbone.fc.

    The name ends with its first number; without one, with the child of the backbone.
    """
    modules = name.split(".")[:-1]
    end = next((i for i, word in enumerate(modules) if word.isdigit()), 1)
    return ".".join(modules[: end + 1])


def _joined(slices: list[slice]) -> list[slice]:
    """The same columns in fewer slices: neighbours become one, which is read without a copy."""
    joined: list[slice] = []
    for where in slices:
        if joined and joined[-1].stop == where.start:
            joined[-1] = slice(joined[-1].start, where.stop)
        else:
            joined.append(where)
    return joined


def compare(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (n, n) between the rows, and their lengths (n,) as shares of the longest.

    Both are 0 for a row of zeros. Rows are divided by their largest entry before anything is
    squared: no overflow, whatever their size.

    >>> compare(torch.tensor([[3e30, 4e30], [0.0, 1e30], [0.0, 0.0]]))
    (tensor([[1.0000, 0.8000, 0.0000],
            [0.8000, 1.0000, 0.0000],
            [0.0000, 0.0000, 0.0000]]), tensor([1.0000, 0.2000, 0.0000]))
    """
    tiny = torch.finfo(gradients.dtype).tiny
    largest = torch.linalg.vector_norm(gradients, inf, dim=1, keepdim=True)
    rows = gradients / largest.clamp_min(tiny)
    gram = rows @ rows.T
    lengths = gram.diagonal().sqrt()
    cosines = (gram / lengths.outer(lengths).clamp_min(tiny)).clamp(-1, 1)
    shares = largest[:, 0] / largest.max().clamp_min(tiny) * lengths
    return cosines, shares / shares.max().clamp_min(tiny)

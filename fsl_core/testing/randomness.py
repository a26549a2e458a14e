"""Random numbers that depend on shapes alone, so that executions of one adapter can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@contextmanager
def fixed_randomness() -> Iterator[None]:
    """Within this context, dropout and torch's usual random functions give the same at each call.

    A loop and torch.func.vmap draw from torch's generator in orders of their own, so no seed makes
    them equal. Numbers that depend on a tensor's shape do: a task has the same in every execution.
    """
    with ExitStack() as stack:
        for module, functions in ((F, _DROPOUTS), (torch, _DRAWS)):
            for name, function in functions.items():
                stack.enter_context(patch.object(module, name, function))
        yield


def _uniform(shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """NumPy's numbers, because torch.func.vmap draws torch's own in another way than a loop."""
    numbers = torch.from_numpy(np.random.default_rng([*shape, len(shape)]).random(tuple(shape)))
    if like is None:
        return numbers.to(torch.get_default_dtype())
    return numbers.to(like.dtype).to(like.device)


def _normal(shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    return torch.special.ndtri(_uniform(shape, like).clamp(1e-6, 1 - 1e-6))


def _dropout(axes: int | None) -> Callable[..., Tensor]:
    """axes: the leading ones that masks differ along; None: all."""

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        shape = tuple(x.shape[:axes]) + (1,) * (x.dim() - len(x.shape[:axes]))
        return x * (_uniform(shape, x) >= p) / max(1 - p, 1e-9)

    return dropout


def _sized(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(
        *size: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        requires_grad: bool = False,
        **_: object,
    ) -> Tensor:
        """torch.rand(2, 3) and torch.rand((2, 3)), with what decides the type of the result."""
        shape = size[0] if size and not isinstance(size[0], int) else size
        drawn = draw(tuple(shape))
        found = drawn.to(device=device or drawn.device, dtype=dtype or drawn.dtype)
        return found.requires_grad_(requires_grad)

    return function


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, **_: draw(tuple(x.shape), x)


_DROPOUTS = {
    "dropout": _dropout(None),
    "alpha_dropout": _dropout(None),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"), _dropout(2)),
}
_DRAWS = {
    "rand": _sized(_uniform),
    "randn": _sized(_normal),
    "rand_like": _like(_uniform),
    "randn_like": _like(_normal),
    "bernoulli": lambda p, **_: (_uniform(tuple(p.shape), p) < p).to(p),
}

"""From items as they are kept to what a backbone takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsl_core.errors import ShapeError

Decode = Callable[[Tensor], Tensor]
"""(n, *item_shape) items as they are kept -> (n, *input_shape) items as a backbone takes them."""


def decode_by_type(items: Tensor) -> Tensor:
    """uint8 -> float32 in 0 .. 1; other whole numbers -> int64, token ids; floats -> float32."""
    if items.dtype == torch.uint8:
        return decode_levels(items)
    return decode_numbers(items) if items.is_floating_point() else decode_tokens(items)


def decode_levels(items: Tensor) -> Tensor:
    """Levels 0 .. 255 -> items / 255, float32; bit for bit the same on every device."""
    if items.device.type == "cpu":
        # NumPy stays on this thread: to wake torch's threads takes longer than the work.
        return torch.from_numpy(np.divide(items.numpy(), 255, dtype=np.float32))
    # A tensor: by a plain number a GPU multiplies with the rounded reciprocal, to other bits.
    return items.float() / torch.tensor(255.0, device=items.device)


def decode_numbers(items: Tensor) -> Tensor:
    """The numbers as they are, float32."""
    return items.float()


def decode_tokens(items: Tensor) -> Tensor:
    """The ids as they are, int64."""
    return items.long()


@dataclass(frozen=True, eq=False)
class Standardised:
    """(items - mean) / deviation, float32.

    mean, deviation: float64, of a shape that is broadcast against one item.
    """

    mean: Tensor
    deviation: Tensor

    def __call__(self, items: Tensor) -> Tensor:
        mean, deviation = (t.to(items.device) for t in (self.mean, self.deviation))
        # In float64: the difference of two large numbers would lose its digits.
        return items.to(torch.float64, copy=True).sub_(mean).div_(deviation).float()

    @property
    def key(self) -> str:
        """Numbers that tell this decoding from others."""
        return f"standardised {self.mean.tolist()} {self.deviation.tolist()}"


def decode_key(decode: Decode) -> str:
    """What tells a decoding from others: its `key`, or else its name; "" of the usual one."""
    if decode is decode_by_type:
        return ""
    name = getattr(decode, "__qualname__", type(decode).__qualname__)
    return str(getattr(decode, "key", f"{decode.__module__}.{name}"))


KEPT = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
"""Types that items are kept in."""


def refuse_type(where: str, dtype: torch.dtype) -> None:
    """Raise ShapeError unless items of this type can be drawn; `where` begins the message."""
    if dtype not in KEPT:
        fit = "uint8 levels, whole numbers (token ids), or floats"
        raise ShapeError(f"{where}: items of {dtype}. {fit}")

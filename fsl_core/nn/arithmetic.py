"""In which types devices compute, how a GPU rounds, and in which order it adds up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def arithmetic(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Within this context float32 is float32 on a GPU, and the same call gives the same bits.

    torch itself lets convolutions on a GPU drop 13 of the 23 bits of their inputs (TF32), and takes
    algorithms that add up in an order of chance. On other devices nothing changes.

    tf32: convolutions and products may drop these bits, which is faster.

    What has no algorithm with a fixed order is computed all the same, with torch's warning.
    """
    if device.type != "cuda":
        yield
        return
    # The library of products reads it when it is loaded, and torch asks for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = [(torch.backends.cudnn, "deterministic", True)]
    settings += [(part, name, _value(name, tf32)) for part, name in _rounding()]
    before = [getattr(part, name) for part, name, _ in settings]
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    try:
        for part, name, value in settings:
            setattr(part, name, value)
        torch.use_deterministic_algorithms(True, warn_only=warns or not strict)
        memory.fill_uninitialized_memory = False  # time for nothing here
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        for (part, name, _), value in zip(settings, before, strict=True):
            setattr(part, name, value)


def _rounding() -> list[tuple[Any, str]]:
    """The settings of torch that say how float32 is rounded on a GPU."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # since torch 2.9, which refuses a mixture of both
        return [(part, "fp32_precision") for part in (cudnn.conv, cudnn.rnn, products)]
    return [(cudnn, "allow_tf32"), (products, "allow_tf32")]


def _value(name: str, tf32: bool) -> Any:
    if name == "fp32_precision":
        return "tf32" if tf32 else "ieee"
    return tf32


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes products in on this device; None: it is not enabled."""
    # The compiler of torch 2.11 cannot trace torch.amp.is_autocast_available.
    kind = device.type
    enabled = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Within this context the types of tensors say what is computed in, as in a backward pass."""
    if autocast_type(device) is None:
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield

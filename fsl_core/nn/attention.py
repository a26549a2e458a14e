"""Attention that can be differentiated as often as an inner loop needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.backends import cuda

_FUSED = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)
"""Whether a fused kernel may be used, and how to say so; torch asks these on a CPU too."""


class _Users:
    """Who needs plain attention now. torch keeps the choice of kernels for the whole process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0
        self.found: list[bool] = []
        self.math_found = True


_users = _Users()


def plain_attention() -> AbstractContextManager[None]:
    """Within this context, `scaled_dot_product_attention` is computed from plain operations.

    Its fused kernels have no second derivative, which an inner loop of gradient steps needs.
    """
    if torch.compiler.is_compiling():
        return nullcontext()  # whoever compiles is within this context: a compiler cannot trace it
    return _plain()


@contextmanager
def _plain() -> Iterator[None]:
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    with _users.lock:
        _users.count += 1
        if _users.count > 1:  # another thread, or a call further out, has said so already
            return
        _users.found = [enabled() for enabled, _ in _FUSED]
        _users.math_found = cuda.math_sdp_enabled()
        for _, enable in _FUSED:
            enable(False)
        cuda.enable_math_sdp(True)


def _leave() -> None:
    with _users.lock:
        _users.count -= 1
        if _users.count:
            return
        for (_, enable), found in zip(_FUSED, _users.found, strict=True):
            enable(found)
        cuda.enable_math_sdp(_users.math_found)

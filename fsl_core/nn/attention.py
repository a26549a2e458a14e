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
"""For each fused kernel: the question whether torch may use it, and the call that says so.

They live in `torch.backends.cuda`, but torch reads them for a CPU too.
"""


class _Users:
    """The contexts that need plain attention now, in all threads.

    torch keeps the choice of kernels for the whole process, not for a thread. So the first context
    to enter switches the fused kernels off, and the last one to leave puts them back. Without the
    count, a thread that is done would give the fused kernels back to the others half way through.

    found:      what the first context found, in the order of `_FUSED`.
    math_found: the same for the plain operations.
    """

    def __init__(self) -> None:
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
        # The compiler cannot trace a lock. The caller of a compiled function enters the context.
        return nullcontext()
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
        if _users.count > 1:  # another thread, or a call further out, has switched them off
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

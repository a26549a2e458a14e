"""A module called with weights that are not its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fsl_core.nn.norms import current_reference, support_reference
from fsl_core.nn.transforms import transformed


class _OfThread(threading.local):
    """A thread's own flag, because each thread of `fsl_core.engine.workers` computes a task."""

    def __init__(self) -> None:
        self.checkpointed = False


_state = _OfThread()


@contextmanager
def checkpointed(wanted: bool = True) -> Iterator[None]:
    """Within this context, `call_with` keeps no activations that serve a first derivative alone.

    wanted: False: it keeps them whatever a context around this one says, as for a second
            derivative.
    """
    outer, _state.checkpointed = _state.checkpointed, wanted
    try:
        yield
    finally:
        _state.checkpointed = outer


def call_with(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    *,
    keep: bool = False,
    buffers: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """module(x) with these parameters and buffers in place of its own, which stay as they are.

    With the recipe's `execution.checkpoint_gradients` the activations are not kept: the backward
    pass computes them again (Chen et al. 2016, arXiv:1604.06174). This never happens within
    torch.func.

    buffers: those that the call reads, and of which it may change copies. None: the module's own,
             except those that `weights` names; a caller with many calls collects them once.
    keep: a second derivative needs the activations, so they are kept in any case.
    """
    own = dict(module.named_buffers() if buffers is None else buffers)
    left = {name: buffer for name, buffer in own.items() if name not in weights}

    def call(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        # Copied here, inside of every transform and of a recomputation: torch.func refuses to
        # change what a transform captured, and a checkpoint what it saved.
        copies = {name: buffer.clone() for name, buffer in left.items()}
        return functional_call(module, {**copies, **tensors}, (x,))

    if keep or not _state.checkpointed or not torch.is_grad_enabled() or transformed():
        return call(weights, x)
    names, reference = list(weights), current_reference()

    # The backward pass calls this a second time. By then the caller has left its contexts, and on
    # a GPU it is another thread: what norms refer to has to be handed over.
    def again(x: Tensor, *tensors: Tensor) -> Tensor:
        with support_reference(*reference):
            return call(dict(zip(names, tensors, strict=True)), x)

    return checkpoint(again, x, *weights.values(), use_reentrant=False)

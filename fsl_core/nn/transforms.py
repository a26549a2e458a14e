"""Whether torch traces or transforms the caller."""

from __future__ import annotations

import torch


def transformed() -> bool:
    """Whether the caller runs within torch.func or torch.compile.

    Both see through plain operations only: they have no rule for an autograd function of ours or
    for a checkpoint.
    """
    # torch has no public question for this. A version without the private one is answered with
    # "yes", which costs speed and is never wrong.
    active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
    return torch.compiler.is_compiling() or active()

"""What a process of a sweep does: `fsl` with other arguments. See `fsl_core.sweeping.server`."""

from __future__ import annotations

import os
import sys
from importlib import import_module

IMPORTED = (
    "fsl_core.cli",  # first: it settles what torch reads when it is imported
    "fsl_core.api",
    "fsl_core.reporting.progress",
    "fsl_core.engine.memory",
    "fsl_core.reporting.report",
    "fsl_core.training.outer_loop",
    "matplotlib.backends.backend_svg",
    "rich.live",
)


def preload(no_plugin: list[str]) -> str:
    """Import what a run needs, all plugins included; returns why this process may not be forked."""
    for name in IMPORTED:
        import_module(name)
    import torch

    from fsl_core.hooks.loader import load

    load(no_plugin=no_plugin)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo: a second
    return "CUDA was used while it loaded" if cuda_is_spoilt() else ""


def cuda_is_spoilt() -> bool:
    """Whether CUDA would refuse to work in a process forked from this one.

    A question such as how many devices there are is enough for that. torch knows it, but says so
    in a forked process alone, by a private function.
    """
    import torch

    if not (number := os.fork()):
        os._exit(int(torch.cuda._is_in_bad_fork()))
    _, status = os.waitpid(number, 0)
    return status != 0


def run(arguments: list[str]) -> None:
    from fsl_core.cli import main

    sys.argv = ["fsl", *arguments]
    main()

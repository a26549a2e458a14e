"""The peers, each in a module of its own, written as that peer's documentation writes it.

A module has any of

    maml(model, episodes, loss, inner_lr, inner_steps) -> function that returns the meta-gradient
    centroid(model, episodes, loss)                    -> the same for class means of features

Both get a plain torch model and a batch of episodes; the meta-gradient is the mean over episodes,
one tensor a parameter, or one array of another library that `torch.from_dlpack` reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from benchmarks.problems import Problem
from benchmarks.race import LeftOut
from fsl_core.data.vision import torchvision

NAMES = {
    "learn2learn": "learn2learn",
    "higher": "higher",
    "torchopt": "TorchOpt",
    "easyfsl": "easyfsl",
    "torch_func": "torch alone, loop",
    "torch_func_vmap": "torch alone, vmap",
    "jax": "JAX alone",
}
"""Modules, and what tables call them."""

LIBRARIES = ("learn2learn", "higher", "torchopt", "easyfsl")
"""What targets are measured against."""

BASELINES = ("torch_func", "torch_func_vmap", "jax")
"""What a user writes without such a library, for comparison."""


def peer(name: str) -> ModuleType:
    """The module of a peer. LeftOut, with the reason, if its library cannot be imported."""
    torchvision()  # some import it, which fails beside another build of torch than its own
    try:
        return import_module(f"benchmarks.peers.{name}")
    except ImportError as error:
        kept = Path(sys.prefix) / "peers.json"
        reasons = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
        raise LeftOut(reasons.get(name) or f"not installed here ({error})") from error


def meta_gradient_of(name: str, problem: Problem) -> Callable[[], list[Tensor]]:
    """A peer's meta-gradient of a problem. LeftOut if it has none of that kind."""
    prepare = getattr(peer(name), problem.kind, None)
    if prepare is None:
        raise LeftOut(f"offers no {problem.kind}")
    inner = (problem.inner_lr, problem.inner_steps) if problem.kind == "maml" else ()
    return prepare(problem.model, problem.episodes, problem.loss, *inner)


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, each of which has one after a backward pass."""
    return [p.grad for p in model.parameters() if p.grad is not None]

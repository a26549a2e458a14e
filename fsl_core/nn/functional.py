"""Backbone and head as one function of named weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fsl_core.nn.arithmetic import autocast_type
from fsl_core.nn.forward import call_with

Weights = dict[str, Tensor]
"""Tensors by name, such as `backbone.blocks.0.weight` and `head.bias`."""

PARTS = {"all": "*", "head": "head.*", "body": "backbone.*"}
"""Words that stand for a pattern of names."""


class Functional:
    """head(backbone(x)) as a function of named weights; no call changes either module.

    backbone: (n, *input_shape) -> (n, feature_dim).    head: (n, feature_dim) -> (n, output_dim).
    weights:  their parameters by name, `backbone.blocks.0.weight`, `head.bias`; those of the
              backbone come first. Inside torch.func they are what the caller put in their place.

    Make one where a task begins, with the backbone that `adapt` was given: buffers, such as running
    statistics, are those of that moment, and each call reads and changes copies. Norms are exact
    under vmap where the backbone's are (`fsl.Norm`). Activations are kept or computed again as
    `call_with` says, and features of norm policy `support` see the weights of the call.

    >>> net = Functional(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    >>> list(net.weights)
    ['backbone.weight', 'head.weight', 'head.bias']
    >>> net({name: torch.ones_like(w) for name, w in net.weights.items()}, torch.ones(1, 2)).item()
    7.0
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        self._backbone, self._head = backbone, head
        self._buffers = dict(backbone.named_buffers())
        self.weights: Weights = {f"backbone.{n}": w for n, w in backbone.named_parameters()}
        self.weights |= {f"head.{name}": w for name, w in head.named_parameters()}

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(n, *input_shape) -> (n, output_dim)."""
        return self.head(weights, self.features(weights, x))

    def features(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(n, *input_shape) -> (n, feature_dim)."""
        return call_with(self._backbone, _of("backbone.", weights), x, buffers=self._buffers)

    def head(self, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """(n, feature_dim) -> (n, output_dim); in float32 also under autocast."""
        own, kind = _of("head.", weights), features.device.type
        if autocast_type(features.device) is None:
            return self._head_of(own, features)
        with torch.autocast(kind, enabled=False):
            return self._head_of(own, features.float())

    def _head_of(self, own: Weights, features: Tensor) -> Tensor:
        if type(self._head) is nn.Linear:
            # The product alone: putting weights in their place takes 95 us, six times as long,
            # at every step of an inner loop that moves the head alone.
            return F.linear(features, own["weight"], own.get("bias"))
        return functional_call(self._head, own, (features,))

    def predictor(self, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """The network with these weights."""
        return lambda x: self(weights, x)

    def adapted(
        self,
        patterns: str | Iterable[str] = "all",
        *,
        frozen: bool = False,
        without: Collection[str] = (),
        option: str = "adapted",
    ) -> tuple[str, ...]:
        """The names of the weights that an inner loop moves, in the order of `weights`.

        To be asked in a constructor: inside torch.func no weight tells whether it is trained.

        patterns: `all`, `head`, `body`, or shell patterns over the names; one or several.
        frozen:   weights that require no gradient count, too.
        without:  names that no pattern means.    option: of the recipe, for messages.
        ValueError for a pattern that matches nothing, and for patterns that match frozen weights
        alone.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        shapes = [PARTS.get(pattern, pattern) for pattern in patterns]
        names = [name for name in self.weights if name not in without]
        idle = [shape for shape in shapes if not any(fnmatchcase(name, shape) for name in names)]
        if idle or not shapes:
            found = f"{_quoted(idle)} matches no parameter" if idle else "an empty list"
            fit = f"{', '.join(PARTS)}, or patterns over {', '.join(names)}"
            raise ValueError(f"{option}: {found}. {fit}")
        matching = [name for name in names if any(fnmatchcase(name, s) for s in shapes)]
        moved = tuple(n for n in matching if frozen or self.weights[n].requires_grad)
        if not moved:
            raise ValueError(
                f"{option}: {_quoted(patterns)} matches frozen parameters alone, "
                f"{', '.join(matching)}. adapt_frozen: true, or patterns of others"
            )
        return moved


def _of(part: str, weights: Mapping[str, Tensor]) -> Weights:
    """Those of one part, by the names that they have there."""
    return {name.removeprefix(part): w for name, w in weights.items() if name.startswith(part)}


def _quoted(patterns: Iterable[str]) -> str:
    return ", ".join(map(repr, patterns))

"""The layers of a backbone, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from fsl_core.errors import OptionError
from fsl_core.text import printable

Maps = Literal["whole", "positions"]
"""A map is one item of many features, or an item at each position, of as many as channels."""

_SEQUENCES = (nn.Sequential, nn.ModuleList)


def layers_of(backbone: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The layers of a backbone by name, in order.

    That is the parts with weights of the first module, from the outside, that is a sequence or has
    several of them: the blocks of `conv4`, the hidden layers of `mlp`.

    patterns: shell patterns over the names of all modules, in place of this rule.
    Raises OptionError for a pattern that matches none.
    """
    if patterns:
        return _matching(backbone, patterns)
    at, name = backbone, ""
    while len(parts := _with_weights(at)) == 1 and not isinstance(at, _SEQUENCES):
        (found,) = parts
        name, at = f"{name}.{found}".lstrip("."), parts[found]
    if not parts and at is not backbone:
        return {name: at}
    return {f"{name}.{part}".lstrip("."): module for part, module in parts.items()}


def _with_weights(module: nn.Module) -> dict[str, nn.Module]:
    children = module.named_children()
    return {name: child for name, child in children if next(child.parameters(), None) is not None}


def _matching(backbone: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    modules = {name: module for name, module in backbone.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise OptionError(
                f"layers: {printable(pattern)!r} matches no module of the backbone. "
                f"Patterns of {', '.join(modules) or 'none: it has no parts'}"
            )
    return {n: m for n, m in modules.items() if any(fnmatchcase(n, p) for p in patterns)}


@contextmanager
def recorded(
    layers: Mapping[str, nn.Module], items: int, maps: Maps
) -> Iterator[dict[str, Tensor]]:
    """Within this context, what each layer computed last: (n, features), by its name.

    items: of the call; rows before them are those of the support set, under norm policy `support`.
    maps:  `positions`: of (items, channels, height, width), n = items times positions, and features
           are channels. `whole`, and all other outputs: n = items.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple | list) else output
            found[name] = _as_rows(output.detach()[-items:], maps)

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()


def _as_rows(output: Tensor, maps: Maps) -> Tensor:
    if maps == "positions" and output.dim() == 4:
        return output.movedim(1, -1).flatten(0, -2)
    return output.flatten(1)

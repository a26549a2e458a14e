"""What a task must be and must leave alone, as measurements.

The contract kit uses them, and the trial before a run. A function here returns what is wrong in the
words `<what was found>. <what would fit>`, or "".
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsl_core.blame import NO_SUPER

_OF_TORCH = frozenset(vars(nn.Module()))


def apart(found: Tensor, expected: Tensor) -> str:
    """How far two tensors are from one another, in words."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    return f"by {difference:.2g} where the largest is {largest:.2g}"


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within tolerance of the largest number."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3))


def wrong_module(module: object, kind: type[nn.Module]) -> str:
    """A module of this kind whose constructor ran to the end, with weights that have values."""
    if not isinstance(module, kind):
        return (
            f"not a {kind.__name__} of {kind.__module__.partition('.')[0]}. A class derived from it"
        )
    if "_modules" not in vars(module):
        return NO_SUPER
    for name, weight in module.named_parameters():
        if isinstance(weight, nn.UninitializedParameter):
            return f"{name} has no size yet. Layers with sizes, from task.input_shape"
        if weight.is_meta:
            return f"{name} is on the meta device, without values. A constructor that makes them"
    return ""


def wrong_output(what: str, output: Any, shape: tuple[int, ...], dtype: torch.dtype | None) -> str:
    """A tensor of this shape with finite numbers; dtype: None if any will do."""
    if not isinstance(output, Tensor):
        return f"{what}: a {type(output).__name__}. A tensor of shape {shape}"
    if output.shape != shape:
        return f"{what} of shape {tuple(output.shape)}. Expected {shape}"
    if dtype is not None and output.dtype != dtype:
        return f"{what} of {output.dtype} for {dtype} items. The dtype of the items"
    if not output.isfinite().all():
        return f"{what} not finite. Finite numbers for items of unit size"
    return ""


def wrong_loss(loss: Any) -> str:
    """A finite scalar."""
    if not isinstance(loss, Tensor):
        return f"a loss that is a {type(loss).__name__}. A tensor without axes"
    if loss.shape != ():
        return f"loss of shape {tuple(loss.shape)}. A scalar"
    return "" if loss.isfinite() else f"loss {loss.item()}. A finite number"


def snapshot(module: nn.Module, what: str) -> dict[str, Any]:
    """All that a call must leave alone. what: the module in a word."""
    seen: dict[str, Any] = {
        f"the value of {name}": value.clone() if isinstance(value, Tensor) else value
        for name, value in module.state_dict().items()
    }
    for name, parameter in module.named_parameters():
        seen[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        seen[f"{name}.requires_grad"] = parameter.requires_grad
    for name, part in module.named_modules():
        seen[f"the mode (training or evaluation) of {name or what}"] = part.training
    return seen | {"torch.is_grad_enabled()": torch.is_grad_enabled()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of two snapshots, of tensors or of attributes, that differ or came or went."""
    return [
        name
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or not _same(before[name], after[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one.to(other), other))
    return type(one) is type(other) and one == other


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and frozen parameters: what a checkpoint holds and no gradient moves."""
    frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    return dict(module.named_buffers()) | frozen


def hidden(module: nn.Module) -> dict[str, Any]:
    """Tensors and numbers in plain attributes of a module and its parts; in no checkpoint."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OF_TORCH and _is_state(value)
    }


def _is_state(value: Any) -> bool:
    number = isinstance(value, numbers.Number) and not isinstance(value, bool)
    return number or isinstance(value, Tensor)


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """The present values of what `kept` or `hidden` found."""
    return {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in state.items()}


@contextmanager
def disturbed(module: nn.Module, name: str) -> Iterator[None]:
    """Within this context a buffer, frozen parameter or plain attribute has another value."""
    owner_name, _, key = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    value = getattr(owner, key)
    if not isinstance(value, Tensor):
        setattr(owner, key, value + 1)
        try:
            yield
        finally:
            setattr(owner, key, value)
        return
    data = value.data
    value.data = _another(data)
    try:
        yield
    finally:
        value.data = data


def _another(value: Tensor) -> Tensor:
    """Another value, above zero if it was before: it may be a variance."""
    if value.is_floating_point():
        return 1.5 * value + 0.5
    return value.logical_not() if value.dtype == torch.bool else value + 1


def unlike(module: nn.Module, items: Tensor) -> Iterator[str]:
    """Tensors of a module that are of another type than the items, or on another device."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    plain = {n: v for n, v in hidden(module).items() if isinstance(v, Tensor)}
    for name, tensor in (tensors | plain).items():
        other_type = tensor.is_floating_point() and tensor.dtype != items.dtype
        if other_type or tensor.device != items.device:
            yield f"{name} is {tensor.dtype} on {tensor.device}"

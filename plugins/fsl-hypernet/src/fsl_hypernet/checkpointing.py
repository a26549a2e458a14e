"""Gradient checkpointing that torch.func can transform.

torch.utils.checkpoint cannot: with use_reentrant=False it hooks saved tensors, which
torch.func.grad refuses (torch 2.13), and with True it is an autograd.Function without
setup_context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

import fsl_core as fsl


class _Recomputed(torch.autograd.Function):
    """function(*tensors), computed again in the backward pass, which keeps the arguments alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *vjp(ctx.function, *ctx.saved_tensors)[1](gradient)


class Checkpointed(nn.Module):
    """The backbone, with the activations of each block computed again in the backward pass.

    Blocks: children of an nn.Sequential that have children themselves; a backbone without any is
    one block.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        twin = _with_segments(backbone)
        self._twin = (
            twin if any(isinstance(m, _Segment) for m in twin.modules()) else _Segment(backbone),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._twin[0](x)


def check_recomputable(backbone: nn.Module) -> None:
    """Raise ValueError if a second forward pass would not give the same as the first."""
    modules = list(backbone.modules())
    drops = sorted(
        {
            type(m).__name__
            for m in modules
            if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
        }
    )
    if drops:
        raise ValueError(
            f"checkpoint: {', '.join(drops)} in the backbone, which would draw other numbers when "
            "it is computed again. False, or dropout rate 0"
        )
    if any(isinstance(m, fsl.Norm) and m.policy == "support" for m in modules):
        raise ValueError(
            "checkpoint: a backbone of norm policy 'support', whose reference is no longer there "
            "in the backward pass. False, or another norm policy"
        )


class _Segment(nn.Module):
    """A module of which no activation is kept."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        module, parameters = self.module, dict(self.module.named_parameters())
        buffers = dict(module.named_buffers())

        def compute(x: Tensor, *tensors: Tensor) -> Tensor:
            weights = dict(zip(parameters, tensors, strict=True))
            # A batch norm changes its own buffers.
            copies = {name: buffer.clone() for name, buffer in buffers.items()}
            return functional_call(module, weights | copies, (x,))

        return _Recomputed.apply(compute, x, *parameters.values())


def _with_segments(module: nn.Module) -> nn.Module:
    """A shallow copy of the containers around the same blocks.

    Both see the weights that functional_call puts in their place.
    """
    twin = copy.copy(module)
    wrap = _segment_of_block if isinstance(module, nn.Sequential) else _with_segments
    twin._modules = {
        name: child if child is None else wrap(child) for name, child in module._modules.items()
    }
    return twin


def _segment_of_block(child: nn.Module) -> nn.Module:
    return _Segment(child) if child._modules else child

"""Norm, pooling and ReLU in few passes over the maps, with first and second derivatives.

Maps are (n, channels, h, w), channels-last. They may be bfloat16; what there is one of for each
channel is float32 then, and computed in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fsl_core.nn.norms import FEW_VALUES, few_values

_ALL_BUT_CHANNELS = (0, 2, 3)
_ALL = [True, True, True]
_PARTS = (2, 4, 8, 16, 32, 64)


class After(NamedTuple):
    """What follows the norm: 2x2 max-pooling of this stride, and a ReLU of this slope below 0."""

    stride: int = 2
    slope: float = 0.0


class NormPoolRelu(torch.autograd.Function):
    """relu(max_pool(norm(maps) * scale + shift)), normalised over the batch; mean and variance.

    It pools before it normalises. The affine map of a channel keeps the order of its values, or
    turns it round if its scale is negative; such a channel is turned round for the pooling.
    So only a quarter of the numbers is normalised. Mean and variance have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, scale: Tensor, shift: Tensor, eps: float, after: After
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(maps, scale)
        pooled, places = _pooled(maps, scale, after.stride)
        out = F.batch_norm(pooled, mean, variance, scale, shift, eps=eps)
        F.leaky_relu_(out, after.slope) if after.slope else out.relu_()
        rate = (variance + eps).rsqrt()
        ctx.save_for_backward(maps, scale, mean, rate, pooled, places, out)
        ctx.after = after
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # The derivatives of a derivative need rules of their own: mean, rate and pooled maps are
        # functions of the maps, and have no graph here.
        return *_NormPoolReluBackward.apply(grad, *ctx.saved_tensors, ctx.after), None, None


class _NormPoolReluBackward(torch.autograd.Function):
    """The gradients that `NormPoolRelu` hands on, as a function of grad, maps and scale.

    With g = grad where the result is above 0, v = (maps - mean) * rate, and P the choice of the
    values that were pooled:

        to_shift = sum g      to_scale = sum g * P v
        to_maps  = scale * rate * (P' g - to_shift / count - v * to_scale / count)
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        maps: Tensor,
        scale: Tensor,
        mean: Tensor,
        rate: Tensor,
        pooled: Tensor,
        places: Tensor,
        out: Tensor,
        after: After,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.after = after
        grad = _through_relu(grad, out, after)
        if _by_kernel(maps, scale):
            # eps is in the rate.
            spread = _unpooled(grad, maps, places, after)
            found = torch.ops.aten.native_batch_norm_backward(
                spread, maps, scale, None, None, mean, rate, True, 0.0, _ALL
            )
        else:
            found = _summed_over_pooled(grad, maps, scale, mean, rate, pooled, places, after)
        ctx.save_for_backward(grad, maps, scale, mean, rate, pooled, places, out, *found[1:])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_maps: Tensor, of_scale: Tensor, of_shift: Tensor) -> tuple:
        grad, maps, scale, mean, rate, pooled, places, out, to_scale, to_shift = ctx.saved_tensors
        count = maps.numel() // maps.shape[1]
        gain = scale * rate
        chosen = _chosen(of_maps, places)
        total = of_maps.sum(_ALL_BUT_CHANNELS, dtype=scale.dtype)
        moment = (of_maps * (maps - _per_channel(mean))).sum(_ALL_BUT_CHANNELS) * rate
        lift = of_scale - gain * moment / count
        to_grad = torch.addcmul(
            _per_channel(of_shift - gain * total / count),
            pooled - _per_channel(mean),
            _per_channel(rate * lift),
        ).addcmul_(chosen, _per_channel(gain))
        of_rate = (chosen * grad).sum(_ALL_BUT_CHANNELS, dtype=scale.dtype)
        of_rate = of_rate - (total * to_shift + moment * to_scale) / count
        # What moves a value of the maps: its own place in to_maps and in the pooling; the mean;
        # the rate, as a factor and within v.
        own = -gain * to_scale / count
        of_mean = (own * total + lift * to_shift) / count
        slope = (own * moment + lift * to_scale + gain * of_rate) / count * rate
        to_maps = torch.addcmul(
            _per_channel(rate * (slope * mean - of_mean)), maps, _per_channel(-rate * slope)
        ).addcmul_(of_maps, _per_channel(rate * own))
        to_maps += _unpooled(grad * _per_channel(rate * lift), maps, places, ctx.after)
        to_grad = _through_relu(to_grad.to(grad.dtype), out, ctx.after)
        return to_grad, to_maps.to(maps.dtype), rate * of_rate, *[None] * 6


class ProductPoolRelu(torch.autograd.Function):
    """relu(max_pool(maps)) of maps = patches' filters, which are not kept.

    patches: (k, n * h * w); no gradient reaches them.
    filters: (k, channels).    size: (n, h, w).    Gives (n, channels, h // 2, w // 2).
    """

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, filters: Tensor, size: tuple[int, int, int], after: After
    ) -> Tensor:
        maps = product(patches, filters, size)
        out, places = F.max_pool2d(maps, 2, after.stride, return_indices=True)
        F.leaky_relu_(out, after.slope) if after.slope else out.relu_()
        ctx.save_for_backward(patches, places, out)
        ctx.size, ctx.after = size, after
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = _ProductPoolReluBackward.apply(grad, *ctx.saved_tensors, ctx.size, ctx.after)
        return None, found, None, None


class _ProductPoolReluBackward(torch.autograd.Function):
    """The gradient that `ProductPoolRelu` hands on: a linear function of grad."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        patches: Tensor,
        places: Tensor,
        out: Tensor,
        size: tuple[int, int, int],
        after: After,
    ) -> Tensor:
        ctx.save_for_backward(patches, places, out)
        ctx.size, ctx.after = size, after
        # A layout to fill, of which no value is read.
        maps = grad.new_empty(*size, grad.shape[1]).permute(0, 3, 1, 2)
        grad = _unpooled(_through_relu(grad, out, after), maps, places, after)
        return patches @ grad.permute(0, 2, 3, 1).flatten(0, 2)

    @staticmethod
    def backward(ctx: Any, of_filters: Tensor) -> tuple[Tensor | None, ...]:
        patches, places, out = ctx.saved_tensors
        chosen = _chosen(product(patches, of_filters, ctx.size), places)
        return _through_relu(chosen, out, ctx.after), *[None] * 5


def product(
    patches: Tensor, filters: Tensor, size: tuple[int, int, int], bias: Tensor | None = None
) -> Tensor:
    """patches' filters + bias as maps, channels-last.

    (k, n * h * w), (k, channels) -> (n, channels, h, w), with size = (n, h, w).
    """
    maps = patches.t() @ filters if bias is None else torch.addmm(bias, patches.t(), filters)
    return maps.view(*size, -1).permute(0, 3, 1, 2)


def normalising(
    patches: Tensor, filters: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """Filters whose product with the patches is norm(patches' filters) * scale + shift.

    Mean and variance of a product are those of the patches times the filters, so that no map is
    read. Plain operations on small tensors: all derivatives are exact.

    patches: (k, rows), and last a row of ones.    filters: (k - 1, channels).
    Gives (k, channels).
    """
    patches = patches[:-1]
    mean = patches.mean(1)
    centred = patches - mean[:, None]
    covariance = centred @ centred.t() / patches.shape[1]
    # Below zero by rounding alone.
    variance = (filters * (covariance @ filters)).sum(0).clamp(min=0)
    gain = scale * torch.rsqrt(variance + eps)
    return torch.cat([filters * gain, (shift - (mean @ filters) * gain)[None]])


def _by_kernel(maps: Tensor, scale: Tensor) -> bool:
    """Whether torch's batch_norm adds up exactly enough; in bfloat16 the maps are no better."""
    return maps.dtype != scale.dtype or few_values(maps)


def _parts(rows: int) -> int | None:
    """Into how many equal parts rows are cut, so that each has few enough values to add up."""
    return next((n for n in _PARTS if rows <= n * FEW_VALUES and rows % n == 0), None)


def _moments(maps: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, in the type of its scale."""
    if _by_kernel(maps, scale):
        # Averages that are not moved: their type is that of the result.
        return torch.batch_norm_update_stats(maps, scale, scale, 0.0)
    rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    parts = _parts(len(rows))
    if parts is None:
        mean = rows.mean(0)
        return mean, (rows - mean).square_().mean(0)
    # One call adds up each part of a channel as a channel of its own.
    each = scale.repeat(parts)
    found = torch.batch_norm_update_stats(rows.reshape(len(rows) // parts, -1), each, each, 0.0)
    means, variances = (values.view(parts, -1) for values in found)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def _summed_over_pooled(
    grad: Tensor,
    maps: Tensor,
    scale: Tensor,
    mean: Tensor,
    rate: Tensor,
    pooled: Tensor,
    places: Tensor,
    after: After,
) -> tuple[Tensor, Tensor, Tensor]:
    """to_maps, to_scale, to_shift of a grad that went through the ReLU."""
    count = maps.numel() // maps.shape[1]
    to_shift = grad.sum(_ALL_BUT_CHANNELS)
    to_scale = (grad * (pooled - _per_channel(mean))).sum(_ALL_BUT_CHANNELS) * rate
    gain = scale * rate
    slope = -gain * to_scale * rate / count
    to_maps = torch.addcmul(
        _per_channel(-gain * to_shift / count - slope * mean), maps, _per_channel(slope)
    )
    to_maps += _unpooled(grad * _per_channel(gain), maps, places, after)
    return to_maps, to_scale, to_shift


def _pooled(maps: Tensor, scale: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Of four values each the one that is largest after the norm, and its place."""
    if not bool((scale < 0).any()):
        return F.max_pool2d(maps, 2, stride, return_indices=True)
    sign = _per_channel(torch.where(scale < 0, -1.0, 1.0).to(maps))
    pooled, places = F.max_pool2d(maps * sign, 2, stride, return_indices=True)
    return pooled * sign, places


def _chosen(maps: Tensor, places: Tensor) -> Tensor:
    """The values at the places of a pooling."""
    n, channels, height, width = places.shape
    rows = maps.permute(0, 2, 3, 1).reshape(n, -1, channels)
    at = places.permute(0, 2, 3, 1).reshape(n, -1, channels)
    return rows.gather(1, at).view(n, height, width, channels).permute(0, 3, 1, 2)


# Three private operations, the backward passes of two ReLUs and of pooling: torch has no public
# call that goes back through a ReLU by its result, or through a pooling by its places.
def _through_relu(grad: Tensor, out: Tensor, after: After) -> Tensor:
    if after.slope:
        return torch.ops.aten.leaky_relu_backward(grad, out, after.slope, True)
    return torch.ops.aten.threshold_backward(grad, out, 0)


def _unpooled(grad: Tensor, maps: Tensor, places: Tensor, after: After) -> Tensor:
    """Maps that hold grad at the places of a pooling of `maps`, and zero elsewhere."""
    stride = [after.stride, after.stride]
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad.to(maps.dtype), maps, [2, 2], stride, [0, 0], [1, 1], False, places
    )


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)

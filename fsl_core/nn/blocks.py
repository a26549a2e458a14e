"""The convolution block of few-shot backbones, computed in the order that moves least memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl_core.nn.forward import transformed
from fsl_core.nn.norms import Norm, NormPolicy, normalise_over_batch

_FEW_COLUMNS = 32  # of the matrix of patches: up to three channels under a 3x3 filter


class ConvBlock(nn.Module):
    """3x3 convolution (padding 1) - norm - ReLU - 2x2 max-pooling, (n, channels_in, h, w) -> (n, channels, h // 2, w // 2).

    Exact, and cheaper than the four layers one after another: maps are kept channels-last, also after a first layer of one
    channel, whose layout torch cannot tell; pooling comes before the ReLU, which it commutes with; under a norm that
    subtracts a mean over items the convolution's bias, which cancels, is not added and so gets no gradient.
    Under policy `transductive` on a CPU, where no second derivative is taken, norm, ReLU and pooling are one operation.

    Weights start normal with variance 2 / (9 * channels), the bias at zero.
    """

    def __init__(self, channels_in: int, channels: int, norm: NormPolicy):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)
        self.norm = Norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = self._convolve(x)
        fused = self.norm.over_the_batch_alone and maps.device.type == "cpu"
        if fused and not (transformed() or torch.is_autocast_enabled("cpu")):
            self.norm.check(maps)
            return _NormPoolRelu.apply(maps, self.norm.scale, self.norm.shift, self.norm.eps)
        return F.relu(F.max_pool2d(self.norm(maps), 2))

    def _convolve(self, x: Tensor) -> Tensor:
        bias = None if self.norm.policy in ("transductive", "support") else self.conv.bias
        few = x.device.type == "cpu" and self.conv.weight[0].numel() <= _FEW_COLUMNS
        if (
            few and not torch.compiler.is_compiling()
        ):  # which chooses layouts itself, and trips over ours
            return _patches_times_filters(x, self.conv.weight, bias)
        return F.conv2d(x, self.conv.weight, bias, padding=1)


def _patches_times_filters(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same convolution as one matrix product whose result is channels-last."""
    n, _, height, width = x.shape
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(n * height * width, -1)
    filters = (
        weight.flatten(1).t().contiguous()
    )  # a transposed view would get its gradient from a far slower product
    maps = patches @ filters if bias is None else torch.addmm(bias, patches, filters)
    return maps.view(n, height, width, -1).permute(0, 3, 1, 2)


class _NormPoolRelu(torch.autograd.Function):
    """relu(max_pool(norm(maps) * scale + shift)), normalised over the batch.

    Pooled before it is normalised: a channel's affine map keeps the order of its values, or turns it round where its
    scale is negative. The backward pass then sums over pooled maps alone.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        sign = torch.where(scale < 0, -1.0, 1.0).to(scale) if bool((scale < 0).any()) else None
        turned = maps if sign is None else maps * _per_channel(sign)
        mean = turned.mean((0, 2, 3))
        variance = (turned - _per_channel(mean)).square_().mean((0, 2, 3))
        gain = (scale if sign is None else scale * sign) * (variance + eps).rsqrt()
        pooled, places = F.max_pool2d(turned, 2, return_indices=True)
        out = torch.addcmul(_per_channel(shift - mean * gain), pooled, _per_channel(gain)).relu_()
        ctx.save_for_backward(maps, scale, shift, turned, mean, variance, pooled, places, out, sign)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, scale, shift, turned, mean, variance, pooled, places, out, sign = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            wanted = (maps, scale, shift)
            composed = F.relu(F.max_pool2d(_normalised(maps, scale, shift, ctx.eps), 2))
            return *torch.autograd.grad(composed, wanted, grad, create_graph=True), None
        count = maps.numel() // maps.shape[1]
        rate = (variance + ctx.eps).rsqrt()
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        to_shift = grad.sum((0, 2, 3))
        to_scale = (grad * (pooled - _per_channel(mean))).sum((0, 2, 3)) * rate
        gain = rate * (scale if sign is None else scale * sign)
        slope = -gain * to_scale * rate / count
        to_maps = torch.addcmul(
            _per_channel(-gain * to_shift / count - slope * mean), turned, _per_channel(slope)
        )
        to_maps += torch.ops.aten.max_pool2d_with_indices_backward(
            grad * _per_channel(gain), turned, [2, 2], [2, 2], [0, 0], [1, 1], False, places
        )
        if sign is None:
            return to_maps, to_scale, to_shift, None
        return to_maps.mul_(_per_channel(sign)), to_scale * sign, to_shift, None


def _normalised(maps: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return torch.addcmul(_per_channel(shift), normalise_over_batch(maps, eps), _per_channel(scale))


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]

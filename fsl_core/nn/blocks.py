"""The convolution block of few-shot backbones, computed in the order that moves least memory.

Such a block is small: a MAML step spends its time on reading and writing maps, not on arithmetic.
How much that costs depends on the machine. On one with two Intel cores a step on Conv4-64 takes
0.79 s with norm, ReLU and pooling as one operation, and 1.23 s without. On another machine 136 ms
and 141 ms were measured. See "The convolution block" in docs/performance.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl_core.nn.forward import transformed
from fsl_core.nn.norms import Norm, NormPolicy, normalise_over_batch

_FEW_COLUMNS = 32
"""Columns of the matrix of patches: up to three channels under a 3x3 filter."""


Downsample = Literal["pool", "stride"]
Start = Literal["kaiming", "xavier"]


class ConvBlock(nn.Module):
    """3x3 convolution (padding 1) - norm - ReLU - 2x2 max-pooling.

    (n, channels_in, h, w) -> (n, channels, h // 2, w // 2). Exact, and cheaper than the four layers
    one after another:

    - Maps are kept channels-last, also after a first layer of one channel, whose layout torch
      cannot tell.
    - Pooling comes before the ReLU, which it commutes with.
    - Under a norm that subtracts a mean over items the convolution's bias cancels. It is not added
      and so gets no gradient.
    - Under policy `transductive` on a CPU, when no second derivative is taken, norm, ReLU and
      pooling are one operation.

    downsample: `stride` halves height and width by the stride of the convolution, and nothing is
        pooled: (n, channels_in, h, w) -> (n, channels, ceil(h / 2), ceil(w / 2)). The frame is
        TensorFlow's SAME: an even size is padded on its right or lower side alone.
    init:       of the filters; `kaiming`: normal with variance 2 / (9 * channels); `xavier`:
        uniform with variance 2 / (9 * (channels_in + channels)), by Glorot and Bengio 2010,
        AISTATS 9:249. The bias starts at zero.
    norm_scale: False: the norm shifts and does not scale.    norm_eps: added to its variance.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        norm: NormPolicy,
        *,
        downsample: Downsample = "pool",
        init: Start = "kaiming",
        norm_scale: bool = True,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.strided = downsample == "stride"
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        if init == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.norm = Norm(norm, channels, eps=norm_eps, affine=norm_scale or "shift")

    def forward(self, x: Tensor) -> Tensor:
        maps = self._convolve(x)
        if self.strided:
            return F.relu(self.norm(maps))
        # The fused operation has no rule for torch.func, and autocast would mix its types.
        plain = transformed() or torch.is_autocast_enabled("cpu")
        if self.norm.over_the_batch_alone and maps.device.type == "cpu" and not plain:
            self.norm.check(maps)
            return _NormPoolRelu.apply(maps, self.norm.scale, self.norm.shift, self.norm.eps)
        return F.relu(F.max_pool2d(self.norm(maps), 2))

    def _convolve(self, x: Tensor) -> Tensor:
        bias = None if self.norm.policy in ("transductive", "support") else self.conv.bias
        stride, padding = 1, 1
        if self.strided:
            x, stride, padding = F.pad(x, _same_at_stride_two(*x.shape[2:])), 2, 0
        few = x.device.type == "cpu" and self.conv.weight[0].numel() <= _FEW_COLUMNS
        # A compiler chooses layouts itself, and fails on ours.
        if few and not torch.compiler.is_compiling():
            return _patches_times_filters(x, self.conv.weight, bias, stride, padding)
        return F.conv2d(x, self.conv.weight, bias, stride, padding)


def _same_at_stride_two(height: int, width: int) -> list[int]:
    """The frame of TensorFlow's SAME for a 3x3 filter: left, right, above, below."""
    return [width % 2, 1, height % 2, 1]


def _patches_times_filters(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """The same convolution as one matrix product whose result is channels-last."""
    n = len(x)
    height, width = ((side + 2 * padding - 3) // stride + 1 for side in x.shape[2:])
    patches = F.unfold(x, 3, padding=padding, stride=stride)
    patches = patches.transpose(1, 2).reshape(n * height * width, -1)
    # A copy: through a transposed view the gradient would come from a far slower product.
    filters = weight.flatten(1).t().contiguous()
    maps = patches @ filters if bias is None else torch.addmm(bias, patches, filters)
    return maps.view(n, height, width, -1).permute(0, 3, 1, 2)


class _NormPoolRelu(torch.autograd.Function):
    """relu(max_pool(norm(maps) * scale + shift)), normalised over the batch.

    It pools before it normalises. The affine map of a channel keeps the order of its values, or
    turns it round if its scale is negative; such a channel is turned round before and after.
    So only a quarter of the numbers is normalised, and the backward pass sums over pooled maps.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, scale, shift, turned, mean, variance, pooled, places, out, sign = ctx.saved_tensors
        if torch.is_grad_enabled():
            # This gradient will be differentiated again (create_graph=True). The formula below
            # reads mean, variance and pooled maps that have no graph: to autograd they would be
            # constants, and the second derivative wrong. So the function is computed again from
            # plain operations, of which autograd knows both derivatives.
            wanted = (maps, scale, shift)
            composed = F.relu(F.max_pool2d(_normalised(maps, scale, shift, ctx.eps), 2))
            return *torch.autograd.grad(composed, wanted, grad, create_graph=True), None
        count = maps.numel() // maps.shape[1]
        rate = (variance + ctx.eps).rsqrt()
        # Two private operations, the backward passes of ReLU and of pooling: torch has no public
        # call that goes back through a ReLU by its result, or through a pooling by its places.
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        to_shift = grad.sum((0, 2, 3))
        to_scale = (grad * (pooled - _per_channel(mean))).sum((0, 2, 3)) * rate
        gain = rate * (scale if sign is None else scale * sign)
        # Every value of a channel moves its mean and variance: a term for each that is affine in
        # the maps. The value that was pooled gets its own gradient on top.
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

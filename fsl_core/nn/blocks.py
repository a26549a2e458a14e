"""The convolution block of few-shot backbones, computed in the order that moves least memory.

Such a block is small: a MAML step spends half of its time on reading and writing maps, and on
starting operations. See "The convolution block" in docs/performance.md.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl_core.nn.arithmetic import autocast_type, without_autocast
from fsl_core.nn.norms import Norm, NormPolicy
from fsl_core.nn.passes import After, NormPoolRelu, ProductPoolRelu, normalising, product
from fsl_core.nn.transforms import transformed

_FEW_COLUMNS = 32
"""Columns of the matrix of patches: up to three channels under a 3x3 filter."""

_FEW_NUMBERS = 1 << 18
"""In the patches of one picture, which a GPU then has to hold: 16x16 maps of up to 113 channels."""


Downsample = Literal["pool", "stride"]
Start = Literal["kaiming", "xavier", "torch"]


class ConvBlock(nn.Module):
    """3x3 convolution (padding 1) - norm - ReLU - 2x2 max-pooling.

    (n, channels_in, h, w) -> (n, channels, h // 2, w // 2). Exact, and cheaper than the four layers
    one after another:

    - Maps are kept channels-last, also after a first layer of one channel, whose layout torch
      cannot tell.
    - Pooling comes before the ReLU, which it commutes with.
    - Under a norm that subtracts a mean over items the convolution's bias cancels. It is not added
      and so gets no gradient. A norm by averages is put into the filters.
    - On a CPU, where a norm takes its statistics from all items of a call, the norm of a first
      layer is put into its filters, and in later layers norm, ReLU and pooling are one operation,
      whose first and second derivatives are exact (beyond those see `derivatives_of_any_order`).
    - Compiled for a GPU, convolutions of small maps are patches times filters, and pooling is
      comparisons. For weights of each task's own cuDNN is slow, or takes task after task.
    - Under autocast maps are bfloat16; mean, variance, scale and shift stay float32.

    downsample: `stride` halves height and width by the stride of the convolution, and nothing is
        pooled: (n, channels_in, h, w) -> (n, channels, ceil(h / 2), ceil(w / 2)). The frame is
        TensorFlow's SAME: an even size is padded on its right or lower side alone.
    init:       of the filters; `kaiming`: normal with variance 2 / (9 * channels); `xavier`:
        uniform with variance 2 / (9 * (channels_in + channels)), by Glorot and Bengio 2010,
        AISTATS 9:249. The bias starts at zero. `torch`: both as torch draws them.
    norm_scale: False: the norm shifts and does not scale.    norm_eps: added to its variance.
    slope:      of the ReLU below zero; ValueError if negative, which pooling does not commute with.
    pool_stride: 1: the poolings overlap, (n, channels_in, h, w) -> (n, channels, h - 1, w - 1).
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
        slope: float = 0.0,
        pool_stride: Literal[1, 2] = 2,
    ):
        super().__init__()
        if slope < 0:
            raise ValueError(f"slope: {slope}. Zero or more")
        self.strided, self.after = downsample == "stride", After(pool_stride, slope)
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        if init == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        elif init == "kaiming":
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if init != "torch":
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)
        self.norm = Norm(norm, channels, eps=norm_eps, affine=norm_scale or "shift")

    def forward(self, x: Tensor) -> Tensor:
        # A compiler chooses layouts itself, and fails on ours.
        compiling = torch.compiler.is_compiling()
        ours = x.device.type == "cpu" and (self.strided or not compiling)
        by_patches = ours and self.conv.weight[0].numel() <= _FEW_COLUMNS
        if ours and self.norm.over_the_batch_alone(x.shape[0]):
            dtype = autocast_type(x.device) or x.dtype
            with without_autocast(x.device):
                if by_patches and not self.norm.collects:
                    return self._of_normalising_filters(x)
                if not self.strided and not transformed():
                    return self._in_few_passes(x, dtype, by_patches)
        rows = self._few_numbers(x) if _is_gpu(x) else ours and not by_patches
        maps = self._by_rows(x) if compiling and rows else self._convolve(x, by_patches)
        return self._ended(maps if self.norm.by_averages else self.norm(maps))

    def _ended(self, maps: Tensor) -> Tensor:
        """Pooled and through the ReLU."""
        stride, slope = self.after
        by_comparisons = torch.compiler.is_compiling() and _is_gpu(maps)
        pool = _largest_of_four if by_comparisons else partial(F.max_pool2d, kernel_size=2)
        pooled = maps if self.strided else pool(maps, stride=stride)
        return F.leaky_relu(pooled, slope) if slope else F.relu(pooled)

    def _of_normalising_filters(self, x: Tensor) -> Tensor:
        """Without a pass for the norm: it is in the filters, of which the maps are linear.

        Never in bfloat16, which saves nothing where there are few columns.
        """
        norm = self.norm
        patches, size = _patches(x.to(self.conv.weight.dtype), self.strided, ones=True)
        norm.check(patches.t())
        filters = normalising(patches, _columns(self.conv.weight), norm.scale, norm.shift, norm.eps)
        if not (self.strided or transformed() or x.requires_grad):
            return ProductPoolRelu.apply(patches, filters, size, self.after)
        return self._ended(product(patches, filters, size))

    def _in_few_passes(self, x: Tensor, dtype: torch.dtype, by_patches: bool) -> Tensor:
        norm = self.norm
        if not by_patches:
            x = x.to(dtype, memory_format=torch.channels_last)
        maps = self._convolve(x, by_patches)
        norm.check(maps)
        out, mean, var = NormPoolRelu.apply(maps, norm.scale, norm.shift, norm.eps, self.after)
        if norm.collects:
            count = maps.numel() // maps.shape[1]
            norm.move_averages(var * (count / (count - 1)), mean)
        return out

    def _convolve(self, x: Tensor, by_patches: bool) -> Tensor:
        weight, bias = self._weights()
        if by_patches:
            patches, size = _patches(x.to(weight.dtype), self.strided)
            return product(patches, _columns(weight), size, bias)
        # Under torch.func autocast does not reach a CPU's convolutions.
        dtype = autocast_type(x.device) or x.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if self.strided:
            x = F.pad(x, _same_at_stride_two(*x.shape[2:]))
            return F.conv2d(x, weight, bias, stride=2)
        return F.conv2d(x, weight, bias, padding=1)

    def _by_rows(self, x: Tensor) -> Tensor:
        """The convolution as one product for each task.

        A compiler calls a convolution with weights of each task's own as one of as many groups. On
        a CPU its backward pass, and the layouts that it copies, take twice as long as patches and
        products where it is strided; on a GPU all of it takes three times as long.
        """
        dtype = autocast_type(x.device) or x.dtype
        weight, bias = self._weights()
        rows = _rows(x.to(dtype).permute(0, 2, 3, 1), self.strided)
        filters = weight.to(dtype).permute(0, 2, 3, 1).flatten(1)
        return F.linear(rows, filters, bias if bias is None else bias.to(dtype)).permute(0, 3, 1, 2)

    def _few_numbers(self, x: Tensor) -> bool:
        places = x.shape[2] * x.shape[3] // (4 if self.strided else 1)
        return places * self.conv.weight[0].numel() <= _FEW_NUMBERS

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        """Filters and bias. Averages of the norm, which are constants, are put into them."""
        weight, bias, norm = self.conv.weight, self.conv.bias, self.norm
        if norm.by_averages:
            gain, offset = norm.by_channel()
            assert bias is not None
            return weight * gain.view(-1, 1, 1, 1), torch.addcmul(offset, bias, gain)
        return weight, None if norm.takes_away else bias


def _columns(filters: Tensor) -> Tensor:
    """(channels, channels_in, 3, 3) -> (9 * channels_in, channels)."""
    # A copy: through a transposed view the gradient would come from a far slower product.
    return filters.flatten(1).t().contiguous()


def _same_at_stride_two(height: int, width: int) -> list[int]:
    """The frame of TensorFlow's SAME for a 3x3 filter: left, right, above, below."""
    return [width % 2, 1, height % 2, 1]


def _rows(x: Tensor, strided: bool) -> Tensor:
    """The patches under a 3x3 filter, channels-last, one row for each place.

    (n, h, w, channels) -> (n, h, w, 9 * channels); strided: (n, ceil(h / 2), ceil(w / 2), ...).
    """
    stride, frame = (2, _same_at_stride_two(*x.shape[1:3])) if strided else (1, [1, 1, 1, 1])
    x = F.pad(x, [0, 0, *frame])
    height, width = x.shape[1:3]
    taps = [
        x[:, i : height - 2 + i : stride, j : width - 2 + j : stride]
        for i in range(3)
        for j in range(3)
    ]
    return torch.cat(taps, -1)


def _largest_of_four(maps: Tensor, stride: int) -> Tensor:
    """F.max_pool2d(maps, 2, stride), which takes the first of equals, and a nan if there is one.

    A compiler fuses comparisons with what is beside them, and keeps a pass for max_pool2d.
    """
    maps = maps.permute(0, 2, 3, 1)  # as they lie
    height, width = maps.shape[1:3]
    upper, lower = (
        _larger(row[:, :, 0 : width - 1 : stride], row[:, :, 1:width:stride])
        for row in (maps[:, 0 : height - 1 : stride], maps[:, 1:height:stride])
    )
    return _larger(upper, lower).permute(0, 3, 1, 2)


def _larger(first: Tensor, second: Tensor) -> Tensor:
    return torch.where((first >= second) | first.isnan(), first, second)


def _is_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _patches(x: Tensor, strided: bool, ones: bool = False) -> tuple[Tensor, tuple[int, int, int]]:
    """The patches under a 3x3 filter, (9 * channels, n * h * w), and (n, h, w).

    One row for each number of a filter: such a row is copied in long pieces.

    ones: one more row, of ones.
    """
    stride = 2 if strided else 1
    x = F.pad(x, _same_at_stride_two(*x.shape[2:]) if strided else [1, 1, 1, 1])
    n, channels, height, width = x.shape
    rows = [
        x[:, channel, i : height - 2 + i : stride, j : width - 2 + j : stride]
        for channel in range(channels)
        for i in range(3)
        for j in range(3)
    ]
    size = (n, *rows[0].shape[1:])
    rows += [torch.ones_like(rows[0])] if ones else []
    return torch.stack(rows).flatten(1), size

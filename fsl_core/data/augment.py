"""Random changes of training images.

Each is a function of the image and of bits drawn for it, without a random state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsl_core.data.draws import to_uniform

Augmentation = Literal["none", "flip", "crop-flip"]
Change = Callable[[Tensor, np.ndarray], Tensor]
"""(n, channels, height, width) images and (n, 3) uint64 bits -> images of the same shape."""

PADDING = 4


def flip(images: Tensor, bits: np.ndarray) -> Tensor:
    """Each image mirrored left to right with probability 1/2.

    images: (n, channels, height, width).
    bits:   (n, 3) uint64, of which the last column is used.
    """
    mirrored = torch.from_numpy(to_uniform(bits[:, 2]) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def crop_flip(images: Tensor, bits: np.ndarray) -> Tensor:
    """Each image framed, cut back to its old size at a random place, and perhaps mirrored.

    The frame is 4 black pixels wide; an image is mirrored with probability 1/2.

    images: (n, channels, height, width).
    bits:   (n, 3) uint64: for the row, the column and the mirror.
    """
    n, channels, height, width = images.shape
    places = (to_uniform(bits[:, :2]) * (2 * PADDING + 1)).astype(np.int64)
    corners = torch.from_numpy(places).to(images.device)
    rows = (corners[:, :1] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (corners[:, 1:] + torch.arange(width, device=images.device))[:, None, None, :]
    item, channel = (torch.arange(m, device=images.device) for m in (n, channels))
    framed = F.pad(images, [PADDING] * 4)
    return flip(framed[item[:, None, None, None], channel[:, None, None], rows, columns], bits)


AUGMENTATIONS: dict[Augmentation, Change | None] = {
    "none": None,
    "flip": flip,
    "crop-flip": crop_flip,
}

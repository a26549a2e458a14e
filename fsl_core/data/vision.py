"""The one module that imports torchvision, when first needed: data sets to download, image files as tensors of one size."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fsl_core.errors import DataError


@cache
def torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not fit torch, as those from PyPI beside a CPU-only torch.

    Then the import stops at "operator torchvision::nms does not exist"; with the schemas of the two operators it names
    defined it succeeds, without the operators themselves, which no data set or transform needs.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    return import_module("torchvision")


def transforms() -> ModuleType:
    """torchvision.transforms.v2.functional."""
    torchvision()
    return import_module("torchvision.transforms.v2.functional")


def torchvision_dataset(name: str, root: Path, **options: Any) -> Any:
    """`torchvision.datasets.<name>(root, download=True, **options)`: downloads what is not there yet.

    Raises DataError with the reason if the download fails or what is there cannot be read.
    """
    download = options.setdefault("download", True)
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore"):  # of NumPy, about how old files were pickled
            return getattr(torchvision().datasets, name)(root, **options)
    except (
        OSError,
        RuntimeError,
        HTTPException,
        AssertionError,
        ValueError,
    ) as error:  # no network, or not the file expected
        what = "download of" if download else "reading"
        raise DataError(
            f"{root}: {what} {name} failed ({error}). A network connection, or the files in place"
        ) from error


def decode_image(file: Path, size: int, channels: Literal["rgb", "gray"] = "rgb") -> Tensor:
    """(3 or 1, size, size) uint8: the short side resized to `size` (antialiased, bilinear), then the centre cut out.

    Any mode that PIL reads: turned as its EXIF entry says, transparent parts on white, 16 bits as their upper 8.
    Raises DataError for a file that is unreadable or truncated.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as found:
            return to_pixels(found, size, channels)
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise DataError(
            f"{file}: not a readable image ({error}). A whole image file, or none"
        ) from error


def to_pixels(image: Image.Image, size: int, channels: Literal["rgb", "gray"] = "rgb") -> Tensor:
    """(3 or 1, size, size) uint8, as `decode_image`, of an image that is open."""
    image = _flatten(ImageOps.exif_transpose(image)).convert({"rgb": "RGB", "gray": "L"}[channels])
    v2 = transforms()
    return v2.pil_to_tensor(v2.center_crop(v2.resize(image, [size], antialias=True), [size, size]))


def _flatten(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and without transparency."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image

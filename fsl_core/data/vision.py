"""Picture files as tensors of one size; the one module that imports torchvision, when needed."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from fsl_core.data.folders import as_unreadable, refuse_unreadable
from fsl_core.data.formats import open_picture, refuse_size
from fsl_core.data.levels import (
    UnscaledError,
    ValueRange,
    byte_levels,
    grey_levels,
    narrowed,
    refuse_narrowed,
)
from fsl_core.data.mapped import scratch
from fsl_core.data.work import for_each
from fsl_core.errors import DataError

Channels = Literal["rgb", "gray"]
MODES: dict[Channels, str] = {"rgb": "RGB", "gray": "L"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation; 1 and all others leave a picture as it is."""


@cache
def torchvision() -> ModuleType:
    """torchvision, even if its compiled operators do not fit torch.

    That is so with the one from PyPI beside a CPU-only torch. The import then stops at "operator
    torchvision::nms does not exist". It succeeds once the schemas of the two operators that it
    names are defined. The operators themselves stay absent: no data set or transform needs them.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # What was imported before the error is only half there: a second import has to start afresh.
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
    """`torchvision.datasets.<name>(root, **options)`, which reads what is there.

    torchvision itself downloads nothing: `fsl_core.data.downloads` compares checksums first.
    Raises DataError with the reason if what is there cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of NumPy, about how old files were pickled
            return getattr(torchvision().datasets, name)(root, **options)
    except (OSError, RuntimeError, AssertionError, ValueError) as error:  # not the file expected
        raise DataError(f"{root}: reading {name} failed ({error}). The files in place") from error


def decode_image(
    file: Path,
    size: int,
    channels: Channels = "rgb",
    value_range: ValueRange | None = None,
) -> Tensor:
    """A picture file as (3 or 1, size, size) uint8.

    The short side is resized to `size` (antialiased, bilinear), then the centre is cut out. The
    file is of one of `formats.FORMATS`, in any mode: turned as its EXIF entry says, transparent
    parts on white, the first picture of several.

    value_range: which numbers become black and white; without it, as `fsl_core.data.levels` says.
    Raises DataError, which names the file, if it is unreadable, truncated or too large, or its
    numbers need a range.
    """
    with _quiet, open_picture(file) as found:
        return to_pixels(found, size, channels, value_range)


def to_pixels(
    image: Image.Image,
    size: int,
    channels: Channels = "rgb",
    value_range: ValueRange | None = None,
) -> Tensor:
    """(3 or 1, size, size) uint8, as `decode_image`, of an image that is open."""
    upright = _turned(_eight_bits(image, MODES[channels], value_range), image)
    pixels = np.array(_centre(upright, size))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def decode_images(
    files: Sequence[Path], decode: Callable[[Path], Tensor], shape: Sequence[int]
) -> tuple[Tensor, dict[int, DataError]]:
    """(n, *shape) uint8, row i decoded from file i, and the errors of files that cannot be decoded.

    The errors are in order, by their place in `files`; their rows are not filled. As many threads
    as torch uses do the work; their number and order change nothing. Thousands of large pictures
    lie in a file, of which the system holds in memory what fits.

    decode: Path -> (*shape) uint8, such as the `decode` of an episode source.
    """
    images = scratch((len(files), *shape))
    rows = images.numpy()  # filled in place: a list of tensors would hold every picture twice
    faults: dict[int, DataError] = {}

    def fill(i: int) -> None:
        try:
            rows[i] = decode(files[i]).numpy()
        except DataError as error:
            faults[i] = error

    with _quiet:
        for_each(fill, len(files), "decoding pictures")
    return images, dict(sorted(faults.items()))


def refuse_faults(files: Sequence[Path], faults: Mapping[int, DataError], fit: str) -> None:
    """Raise one DataError for all faults of `decode_images`.

    It has a line for each, but one line for all those that need a range of the same kind.

    fit: what would do instead of the damaged ones.
    """
    unscaled: dict[str, list[UnscaledError]] = {}
    damaged = []
    for i, error in faults.items():
        if isinstance(error, UnscaledError):
            unscaled.setdefault(error.kind, []).append(error)
        else:
            damaged.append(as_unreadable(files[i], error))
    lines = [str(UnscaledError.joined(errors)) for errors in unscaled.values()]
    try:
        refuse_unreadable(damaged, of=len(files), fit=fit)
    except DataError as error:
        lines.append(str(error))
    if lines:
        raise DataError("\n".join(lines))


def _eight_bits(image: Image.Image, mode: str, value_range: ValueRange | None) -> Image.Image:
    """The image in mode L or RGB, without transparency."""
    narrow = narrowed(image)
    grey = grey_levels(image, value_range)
    if grey is not None:
        return grey.convert(mode)
    if narrow:
        refuse_narrowed(image, value_range)
    return byte_levels(_opaque(image).convert(mode), value_range)


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white, in a mode that Pillow turns into L and RGB."""
    if image.mode == "La":  # premultiplied; Pillow turns it into LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB") if image.mode == "LAB" else image


def _turned(pixels: Image.Image, original: Image.Image) -> Image.Image:
    """The pixels as the EXIF entry of the original says, which was loaded before."""
    try:
        orientation = original.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged entry, which says nothing; the pixels have been read whole
        return pixels
    method = TURNS.get(orientation) if isinstance(orientation, int) else None
    return pixels if method is None else pixels.transpose(method)


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The short side resized to `size`, then the centre square.

    These are the numbers of torchvision's `resize` and `center_crop`, which take twice as long for
    a small picture.
    """
    width, height = image.size
    refuse_size(image.size)
    short, long = min(width, height), max(width, height)
    stretched = int(size * long / short)
    refuse_size((stretched, size), f" when the short side of {width}x{height} is {size}")
    scaled = (size, stretched) if width <= height else (stretched, size)
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    if scaled == (size, size):
        return image
    left, top = (round((side - size) / 2) for side in scaled)
    return image.crop((left, top, left + size, top + size))


class _Quiet:
    """Within this context, warnings are ignored: Pillow's, about files that it reads all the same.

    May be entered by several threads at a time, which `warnings.catch_warnings` may not: the first
    to enter silences them, the last to leave brings them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._caught = warnings.catch_warnings(action="ignore")

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings(action="ignore")  # each serves once
                self._caught.__enter__()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_quiet = _Quiet()

"""How the numbers in a picture become the levels 0 .. 255, and when no rule says how.

Eight bits stay as they are. Sixteen bits without a sign keep their upper eight, if the picture uses
them. Float, signed, 32 bits, or 12 bits in 16 need a named range: the file does not say which
number is black and which is white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from PIL import Image, ImageFile

from fsl_core.errors import DataError

ValueRange = tuple[float, float]
"""(low, high): low and less become 0, high and more 255, and what is between is rounded."""

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2

USED = 0x1000
"""A 16-bit picture whose numbers are all below this would keep 16 levels at most."""

ROWS = 1 << 20
"""Numbers scaled at a time: a large picture would take eight bytes for each in float64."""


class UnscaledError(DataError):
    """The numbers of a picture need a `value_range`.

    kind:      what they are.
    low, high: the smallest and the largest.
    where:     the file.
    """

    def __init__(self, kind: str, low: float, high: float, where: object = None):
        message = _needs_range(kind, low, high)
        super().__init__(f"{where}: {message}" if where else message)
        self.kind, self.low, self.high, self.where = kind, low, high, where

    @classmethod
    def joined(cls, errors: Sequence[UnscaledError]) -> UnscaledError:
        """One for pictures of one kind, with the range that fits them all."""
        low, high = min(e.low for e in errors), max(e.high for e in errors)
        first, more = errors[0], len(errors) - 1
        where = f"{first.where} and {more} more pictures" if more else first.where
        return cls(first.kind, low, high, where)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a picture of one channel, as its file holds them.

    kind: `float`, or their bits: `16-bit`, `signed 16-bit`.
    maxval: of a PGM file, which says itself what is white; None elsewhere.
    white_is_zero: whether large numbers are dark.
    """

    values: np.ndarray
    kind: str
    maxval: int | None = None
    white_is_zero: bool = False


def check_range(value_range: ValueRange | None) -> None:
    """Raise ValueError if it is not two finite numbers, the smaller one first."""
    if value_range is None:
        return
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range: {list(value_range)}. Two numbers, the smaller one first")


def scale(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """uint8 of the same shape: clipped to the range, (x - low) / (high - low) * 255, rounded.

    Computed in float64; halves are rounded to the even number. Raises DataError for NaN.
    """
    low, high = value_range
    levels = np.empty(values.shape, np.uint8)
    step = max(1, ROWS // max(1, values[:1].size))
    for row in range(0, len(values), step):
        part = values[row : row + step].astype(np.float64)
        if np.isnan(part).any():
            raise DataError("holds NaN, which is not a number. Pictures of numbers alone")
        levels[row : row + step] = np.rint((part.clip(low, high) - low) / (high - low) * 255)
    return levels


def grey_levels(image: Image.Image, value_range: ValueRange | None) -> Image.Image | None:
    """An image of one channel that holds more than 8 bits, or a sign, as one of 8 bits.

    None for any other image. Call it before the image is loaded: loading forgets how the file held
    its numbers. Raises UnscaledError if the image needs a range and none is given.
    """
    found = _numbers(image)
    if found is None:
        return None
    values = found.values
    if value_range:
        _refuse_unit_range(found.kind, values, value_range)
        levels = scale(values, value_range)
    elif found.maxval:
        levels = scale(values, (0, found.maxval))
    elif found.kind == "16-bit" and (values.max() >= USED or not values.any()):
        levels = (values >> 8).astype(np.uint8)
    else:
        _refuse_unscaled(found)
    return Image.fromarray(255 - levels if found.white_is_zero else levels)


def byte_levels(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """An image of 8 bits a channel, its numbers mapped by the range if there is one."""
    if value_range is None:
        return image
    low, high = value_range
    if low < 0 or high > 255:
        raise DataError(
            f"8-bit numbers, and value_range {_listed(value_range)} is for others. "
            "Pictures of one kind, or a range within [0, 255]"
        )
    _refuse_unit_range("8-bit", np.asarray(image), value_range)
    table = scale(np.arange(256), value_range).tolist()
    return image.point(table * len(image.getbands()))


def narrowed(image: Image.Image) -> bool:
    """Whether Pillow keeps the upper 8 bits of this file's 16. Ask before the image is loaded."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    raw = [args if isinstance(args, str) else args[0] for args in arguments if args]
    return not image.mode.startswith("I") and any(";16" in str(mode) for mode in raw)


def refuse_narrowed(image: Image.Image, value_range: ValueRange | None) -> None:
    """Raise DataError for a `narrowed` image whose levels are lost with the lower 8 bits."""
    if value_range:
        raise DataError(
            "16-bit colour, of which only the upper 8 bits are read, so value_range "
            f"{_listed(value_range)} cannot be applied. Colour of 8 bits, or 16-bit grey"
        )
    colours = [band for band in image.getbands() if band != "A"]
    largest = max(int(np.asarray(image.getchannel(band)).max()) for band in colours)
    if 0 < largest < USED >> 8:
        raise DataError(
            "16-bit colour with small numbers, of which the upper 8 bits hold hardly any. "
            "Colour of 8 bits, or 16-bit grey with a value_range"
        )


def _numbers(image: Image.Image) -> Numbers | None:
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    signed = SIGNED in tags.get(TIFF_SAMPLE_FORMAT, ())
    if image.mode == "L" and signed:  # Pillow takes a sign bit for 128
        return Numbers(np.asarray(image).view(np.int8), "signed 8-bit")
    if image.mode == "F":
        return Numbers(np.asarray(image), "float", white_is_zero=inverted)
    if image.mode.startswith("I;16"):
        return Numbers(np.asarray(image), "16-bit", white_is_zero=inverted)
    if image.mode != "I":
        return None
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile):
        return _portable(image)
    if image.format in ("PNG", "JPEG2000"):
        return Numbers(np.asarray(image), "16-bit")
    if image.format == "TIFF" and not signed:  # Pillow takes 2 ** 31 and more for negative numbers
        return Numbers(np.asarray(image).view(np.uint32), "32-bit", white_is_zero=inverted)
    bits = tags.get(TIFF_BITS, (32,))[0]
    return Numbers(np.asarray(image), f"signed {bits}-bit", white_is_zero=inverted)


def _portable(image: ImageFile.ImageFile) -> Numbers:
    """The numbers of a PGM file, which Pillow stretches to 0 .. 65535 if its maxval is less."""
    codec, _, _, arguments = image.tile[0]
    if codec == "raw" or not isinstance(arguments, tuple):
        return Numbers(np.asarray(image), "16-bit")
    maxval = int(arguments[1])
    return Numbers(np.rint(np.asarray(image) * (maxval / 65535)).astype(np.int64), "16-bit", maxval)


def _refuse_unscaled(found: Numbers) -> NoReturn:
    finite = found.values[np.isfinite(found.values)]
    if not finite.size:
        raise DataError("holds no number that is finite. Pictures of numbers alone")
    raise UnscaledError(found.kind, float(finite.min()), float(finite.max()))


def _refuse_unit_range(kind: str, values: np.ndarray, value_range: ValueRange) -> None:
    """Whole numbers under a range for fractions would all be black or white."""
    if kind != "float" and value_range[1] <= 1 < values.max():
        raise DataError(
            f"{kind} numbers up to {values.max()}, and value_range {_listed(value_range)} is for "
            "fractions. Pictures of one kind, or the range of these"
        )


def _needs_range(kind: str, low: float, high: float) -> str:
    if kind == "16-bit":
        reason = "of which the upper 8 bits hold hardly any"
    else:
        reason = "and nothing says which of them are black and white"
    return (
        f"{kind} numbers from {low:.6g} to {high:.6g}, {reason}. The option `value_range: "
        f"{_listed(fitting_range(kind, low, high))}` of image-folder, or pictures of 8 bits"
    )


def fitting_range(kind: str, low: float, high: float) -> ValueRange:
    """The range to propose for numbers from low to high.

    That is a usual range if they fill half of it, or else their own.
    """
    if kind != "float" and low >= 0:
        return 0, 2 ** max(1, math.ceil(math.log2(high + 1))) - 1
    if low == high:
        return low, low + 1
    if kind != "float":
        return low, high
    for start, end in ((0, 1), (-1, 1), (0, 255)):
        if start <= low and high <= end and 2 * (high - low) >= end - start:
            return start, end
    step = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _listed(value_range: ValueRange) -> str:
    return f"[{', '.join(f'{number + 0.0:.10g}' for number in value_range)}]"

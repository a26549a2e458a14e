"""Which files count as pictures, and how one is opened without trusting it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fsl_core.data.levels import UnscaledError
from fsl_core.errors import DataError
from fsl_core.files.reading import open_regular

FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read, under Pillow's names, and the endings of their files.

A fixed list, so that the same folder gives the same pictures under every version of Pillow. Only
formats that Pillow decodes itself: EPS and PDF are programs for Ghostscript, WMF, HDF5 and MPEG are
handed to any handler that is registered, and FITS is unpacked without a limit.
"""

PICTURE_ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)
"""The endings, in lower case, of files that count as pictures. What is inside decides the rest."""

WHOLE = "A whole image file, or none"

MAX_PIXELS = 64_000_000
"""Width times height of the largest picture that is read; FSL_MAX_PIXELS changes it."""


def max_pixels() -> int:
    """The limit in force. Raises DataError if FSL_MAX_PIXELS is not a positive whole number."""
    told = os.environ.get("FSL_MAX_PIXELS", "").strip()
    if not told:
        return MAX_PIXELS
    if not told.isascii() or not told.isdigit() or int(told) < 1:
        raise DataError(
            f"environment variable FSL_MAX_PIXELS: {told!r}. A number of pixels, "
            f"such as {MAX_PIXELS}"
        )
    return int(told)


@contextmanager
def open_picture(file: Path, fit: str = WHOLE) -> Iterator[Image.Image]:
    """An image of one of FORMATS, its header read and its size within the limit.

    fit: the end of the message: what would do instead.
    Raises DataError, which names the file, for anything else, and for what its decoder raises
    within this context. A pipe or a device of that name is refused too: it would keep the reader
    waiting.
    """
    with open_regular(file) as stream, decoding(file, fit), identify(stream) as found:
        yield found


@contextmanager
def decoding(where: object, fit: str = WHOLE) -> Iterator[None]:
    """Within this context, every error about a picture becomes a DataError that names it."""
    try:
        yield
    except UnscaledError as error:
        raise UnscaledError(error.kind, error.low, error.high, where) from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Image.DecompressionBombError as error:  # of a header, before its size is seen here
        pixels = re.search(r"\d+", str(error))
        found = f"{int(pixels[0]) / 1e6:.0f} million pixels" if pixels else "too large"
        raise DataError(f"{where}: {found}. {_smaller()}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: not a readable image (of no known format). {fit}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason}). {fit}") from error


def identify(stream: BinaryIO) -> Image.Image:
    """`Image.open` for FORMATS alone, within the limit of pixels. To be called in `decoding`."""
    if Image.MAX_IMAGE_PIXELS and max_pixels() > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels()  # the user's limit is higher than Pillow's own
    found = Image.open(stream, formats=_installed())
    refuse_size(found.size)
    return found


def refuse_size(size: tuple[int, int], how: str = "") -> None:
    """Raise DataError for a picture without pixels or with more than the limit.

    how: words after the size, about how such a picture would come about.
    """
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"{width}x{height} pixels{how}. At least one")
    if width * height > max_pixels():
        millions = width * height / 1e6
        raise DataError(f"{width}x{height} pixels{how}, {millions:.0f} million. {_smaller()}")


def _smaller() -> str:
    limit = f"{max_pixels() / 1e6:g} million"
    return f"At most {limit}, or a larger number in the environment variable FSL_MAX_PIXELS"


@cache
def _installed() -> list[str]:
    """Those of FORMATS that this build of Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]

"""Every kind of number that a picture can hold, against the rule computed with NumPy."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsl_core.data.levels import UnscaledError, check_range, fitting_range, scale
from fsl_core.data.vision import decode_image
from fsl_core.errors import DataError

SIDE = 8


def tiff(values: np.ndarray, sample_format: int, photometric: int = 1) -> bytes:
    """A little-endian TIFF of one channel. sample_format: 1 unsigned, 2 signed, 3 float."""
    data, bits = values.tobytes(), 8 * values.itemsize
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    entries |= {278: height, 279: len(data), 339: sample_format}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


def png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG with 16 bits a channel: (height, width, channels)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def pgm(values: np.ndarray, maxval: int) -> bytes:
    height, width = values.shape
    return f"P5\n{width} {height}\n{maxval}\n".encode() + values.astype(">u2").tobytes()


def numbers(low: float, high: float, dtype: str) -> np.ndarray:
    """SIDE x SIDE of them, so that nothing is resized; the ends included."""
    found = np.random.default_rng(0).uniform(low, high, (SIDE, SIDE))
    found[0, :2] = low, high
    return found.astype(dtype)


def expected(values: np.ndarray, low: float, high: float) -> list[list[int]]:
    return np.rint((np.clip(values.astype(float), low, high) - low) / (high - low) * 255).tolist()


def levels(folder: Path, content: bytes, ending: str, value_range=None) -> list[list[int]]:
    file = folder / f"x.{ending}"
    file.write_bytes(content)
    return decode_image(file, SIDE, "gray", value_range)[0].tolist()


KINDS = {
    "float 0 to 1": (numbers(0, 1, "<f4"), 3, "float"),
    "decibel": (numbers(-80, 0, "<f4"), 3, "float"),
    "hounsfield": (numbers(-1024, 3071, "<i2"), 2, "signed 16-bit"),
    "signed 8": (numbers(-100, 100, "<i1"), 2, "signed 8-bit"),
    "signed 32": (numbers(-70_000, 70_000, "<i4"), 2, "signed 32-bit"),
    "unsigned 32": (numbers(0, 2**32 - 1, "<u4"), 1, "32-bit"),
    "12 in 16": (numbers(0, 4095, "<u2"), 1, "16-bit"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_is_asked_for_and_then_followed(tmp_path: Path, kind: str):
    values, sample_format, name = KINDS[kind]
    content = tiff(values, sample_format)
    with pytest.raises(
        UnscaledError, match=rf"x\.tiff: {name} numbers from .*`value_range: \["
    ) as e:
        levels(tmp_path, content, "tiff")
    low, high = fitting_range(e.value.kind, e.value.low, e.value.high)
    assert low <= values.min() <= values.max() <= high
    found = levels(tmp_path, content, "tiff", (low, high))
    assert found == expected(values, low, high)
    assert len(np.unique(found)) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_outside_of_the_range_are_clipped(tmp_path: Path, kind: str):
    values, sample_format, _ = KINDS[kind]
    low, high = np.percentile(values, [20, 70]).tolist()
    found = levels(tmp_path, tiff(values, sample_format), "tiff", (low, high))
    assert found == expected(values, low, high)
    assert {0, 255} <= set(np.unique(found))


@pytest.mark.parametrize("kind", ["decibel", "12 in 16"])
def test_where_white_is_zero_the_levels_are_exchanged(tmp_path: Path, kind: str):
    values, sample_format, _ = KINDS[kind]
    low, high = float(values.min()), float(values.max())
    found = levels(tmp_path, tiff(values, sample_format, photometric=0), "tiff", (low, high))
    assert found == (255 - np.array(expected(values, low, high))).tolist()


def test_16_bits_keep_their_upper_8_or_follow_the_range(tmp_path: Path):
    values = numbers(0, 65535, "<u2")
    for content, ending in ((tiff(values, 1), "tiff"), (png(values[..., None], 0), "png")):
        assert levels(tmp_path, content, ending) == (values >> 8).tolist()
        assert levels(tmp_path, content, ending, (0, 65535)) == expected(values, 0, 65535)


def test_12_bits_in_a_png(tmp_path: Path):
    values = numbers(0, 900, "<u2")
    with pytest.raises(UnscaledError, match=r"16-bit numbers from 0 to 900, .* \[0, 1023\]` of"):
        levels(tmp_path, png(values[..., None], 0), "png")
    assert levels(tmp_path, png(values[..., None], 0), "png", (0, 1023)) == expected(
        values, 0, 1023
    )


def test_16_bits_that_are_all_black_lose_nothing(tmp_path: Path):
    black = np.zeros((SIDE, SIDE), "<u2")
    assert np.max(levels(tmp_path, tiff(black, 1), "tiff")) == 0


@pytest.mark.parametrize("maxval", [4095, 65535])
def test_a_pgm_file_says_itself_what_is_white(tmp_path: Path, maxval: int):
    values = numbers(0, maxval, "<u2")
    found = levels(tmp_path, pgm(values, maxval), "pgm")
    assert found == (expected(values, 0, 4095) if maxval == 4095 else (values >> 8).tolist())
    assert levels(tmp_path, pgm(values, maxval), "pgm", (0, 2000)) == expected(values, 0, 2000)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour(tmp_path: Path, colour_type: int, channels: int):
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, channels))
    if channels != 3:
        values[..., -1] = 65535  # opaque
    full = levels(tmp_path, png(values, colour_type), "png")
    assert len(np.unique(full)) > 40
    small = np.minimum(values, 4095)
    if channels != 3:
        small[..., -1] = 65535
    with pytest.raises(
        DataError, match=r"x\.png: 16-bit colour with small numbers, .* 16-bit grey"
    ):
        levels(tmp_path, png(small, colour_type), "png")
    with pytest.raises(
        DataError, match=r"x\.png: 16-bit colour, .* value_range \[0, 4095\] cannot"
    ):
        levels(tmp_path, png(values, colour_type), "png", (0, 4095))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_8_bits_follow_a_range_within_theirs(tmp_path: Path, mode: str):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if mode == "LA" else "RGB").convert(mode)
    file = tmp_path / ("x.tiff" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(file)
    for channels in ("gray", "rgb"):
        plain = decode_image(file, SIDE, channels).numpy()
        found = decode_image(file, SIDE, channels, (50, 150)).numpy()
        assert found.tolist() == expected(plain, 50, 150)


@pytest.mark.parametrize("value_range", [(0, 4095), (-1024, 3071), (-1, 1)])
def test_8_bits_do_not_fit_a_range_for_others(tmp_path: Path, value_range: tuple[float, float]):
    Image.new("L", (SIDE, SIDE), 200).save(tmp_path / "x.png")
    with pytest.raises(
        DataError, match=r"x\.png: 8-bit numbers, and value_range \[.*within \[0, 255"
    ):
        decode_image(tmp_path / "x.png", SIDE, value_range=value_range)


def test_whole_numbers_do_not_fit_a_range_for_fractions(tmp_path: Path):
    Image.new("L", (SIDE, SIDE), 200).save(tmp_path / "x.png")
    with pytest.raises(
        DataError, match=r"8-bit numbers up to 200, and value_range \[0, 1\] is for fr"
    ):
        decode_image(tmp_path / "x.png", SIDE, value_range=(0, 1))
    with pytest.raises(
        DataError, match=r"16-bit numbers up to \d+, and value_range \[0, 1\] is for f"
    ):
        levels(tmp_path, tiff(KINDS["12 in 16"][0], 1), "tiff", (0, 1))
    mask = np.eye(SIDE, dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = decode_image(tmp_path / "mask.png", SIDE, "gray", (0, 1))[0]
    assert found.tolist() == (mask * 255).tolist()


def test_nan_is_refused_and_infinity_clipped(tmp_path: Path):
    values = numbers(0, 1, "<f4")
    values[3, 3], values[4, 4] = np.inf, -np.inf
    found = levels(tmp_path, tiff(values, 3), "tiff", (0, 1))
    assert (found[3][3], found[4][4]) == (255, 0)
    with pytest.raises(UnscaledError, match="float numbers from 0 to 1,"):
        levels(tmp_path, tiff(values, 3), "tiff")
    values[5, 5] = np.nan
    with pytest.raises(DataError, match=r"x\.tiff: holds NaN, which is not a number\. Pictures of"):
        levels(tmp_path, tiff(values, 3), "tiff", (0, 1))
    with pytest.raises(DataError, match=r"x\.tiff: holds no number that is finite\. Pictures of"):
        levels(tmp_path, tiff(np.full_like(values, np.nan), 3), "tiff")


def test_scaling_by_rows_is_scaling_at_once(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(50, 7))
    at_once = scale(values, (-1, 1))
    monkeypatch.setattr("fsl_core.data.levels.ROWS", 20)
    assert np.array_equal(scale(values, (-1, 1)), at_once)


@pytest.mark.parametrize(
    ("kind", "low", "high", "proposed"),
    [
        ("float", 0, 0.97, (0, 1)),
        ("float", -0.9, 0.99, (-1, 1)),
        ("float", -79.7, -0.2, (-80, 0)),
        ("float", 3, 240.5, (0, 255)),
        ("float", 0.001, 0.004, (0.001, 0.004)),
        ("float", 5, 5, (5, 6)),
        ("16-bit", 0, 900, (0, 1023)),
        ("16-bit", 17, 17, (0, 31)),
        ("signed 16-bit", -1024, 3071, (-1024, 3071)),
    ],
)
def test_the_range_that_is_proposed(kind: str, low: float, high: float, proposed: tuple):
    assert fitting_range(kind, low, high) == pytest.approx(proposed)


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan")), (float("-inf"), 0)])
def test_a_range_that_is_none(value_range: tuple[float, float]):
    with pytest.raises(
        ValueError, match=r"value_range: \[.*\]\. Two numbers, the smaller one first"
    ):
        check_range(value_range)

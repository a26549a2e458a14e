"""Files made to do harm, under the names of pictures: one line about each, or correct work."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fsl_core.data.cache import content_key
from fsl_core.data.formats import FORMATS, MAX_PIXELS, PICTURE_ENDINGS
from fsl_core.data.vision import decode_image
from fsl_core.errors import DataError

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
(%pipe%touch pwned) (w) file closefile
showpage
"""
NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, data: bytes = b"", depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def gif_header(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x03\x02\x04\x05\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b";"


def tiff(entries: dict[int, int], data: bytes = b"", next_page: int = 0) -> bytes:
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(entries)) + table + struct.pack("<I", next_page)


def grey_tiff(width: int, height: int, data: bytes, **extra: int) -> bytes:
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1}
    return tiff({**entries, 278: height, 279: len(data)}, data, **extra)


def jpeg_of_other_size(width: int, height: int) -> bytes:
    content = saved("JPEG")
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def with_chunk(name: bytes, data: bytes) -> bytes:
    content = saved("PNG")
    return content[:33] + chunk(name, data) + content[33:]


def short_palette(colours: bytes) -> bytes:
    rows = b"".join(b"\0" + bytes(range(10 * i, 10 * i + 20)) for i in range(20))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 3, 0, 0, 0))
    data = chunk(b"PLTE", colours) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + data


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", content)
    return stream.getvalue()


class Pwned:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Pwned()], dtype=object), allow_pickle=True)
    return stream.getvalue()


UNKNOWN = r"not a readable image \(of no known format\)\. A whole image file, or none$"
DAMAGED = r"not a readable image \(.*\)\. A whole image file, or none$"
LARGE = (
    r"(\d+x\d+ pixels, \d+ million|\d+ million pixels)\. At most 64 million, or .* FSL_MAX_PIXELS"
)

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "eps.png": (lambda: EPS, UNKNOWN),
    "eps with a preview.png": (
        lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(EPS), 0, 0, 0, 0) + b"\0\0" + EPS,
        UNKNOWN,
    ),
    "ps.jpg": (lambda: b"%!PS-Adobe-3.0\n" + EPS, UNKNOWN),
    "pdf.png": (lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n", UNKNOWN),
    "svg.png": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='x'/></svg>",
        UNKNOWN,
    ),
    "html.jpg": (lambda: b"<!doctype html><script>alert(1)</script>", UNKNOWN),
    "wmf.png": (lambda: b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60), UNKNOWN),
    "hdf5.png": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), UNKNOWN),
    "mpeg.png": (lambda: b"\x00\x00\x01\xb3\x14\x01\x10" + bytes(100), UNKNOWN),
    "fits bomb.png": (
        lambda: (
            b"SIMPLE  =                    T".ljust(80)
            + b"BITPIX  =                    8".ljust(80)
            + b"NAXIS   =                    0".ljust(80)
            + b"END".ljust(2640)
        ),
        UNKNOWN,
    ),
    "zip.png": (lambda: zipped(saved("PNG")), UNKNOWN),
    "gzip.png": (lambda: gzip.compress(saved("PNG")), UNKNOWN),
    "empty.png": (lambda: b"", UNKNOWN),
    "one byte.png": (lambda: b"\x89", UNKNOWN),
    "text.jpg": (lambda: b"hello", UNKNOWN),
    "pickle.png": (lambda: pickle.dumps(Pwned()), UNKNOWN),
    "pickled array.png": (pickled_array, UNKNOWN),
    "elf.bmp": (lambda: b"\x7fELF" + bytes(200), UNKNOWN),
    "only a signature.png": (lambda: b"\x89PNG\r\n\x1a\n", DAMAGED),
    "huge header.png": (lambda: png_header(50_000, 50_000), LARGE),
    "largest header.png": (lambda: png_header(2**31 - 1, 2**31 - 1), LARGE),
    "just too large.png": (lambda: png_header(8001, 8000), LARGE),
    "nothing wide.png": (lambda: png_header(0, 10), DAMAGED + "|0x10 pixels"),
    "bomb.gif": (lambda: gif_header(65_535, 65_535), LARGE),
    "huge.tiff": (lambda: grey_tiff(100_000, 100_000, b"x"), LARGE),
    "huge.bmp": (
        lambda: (
            b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(24)
        ),
        LARGE,
    ),
    "huge.ppm": (lambda: b"P6\n99999 99999\n255\n", LARGE),
    "other size.jpg": (lambda: jpeg_of_other_size(65_000, 65_000), LARGE),
    "thread.png": (
        lambda: png_header(1, 1_100_000, bytes(2_200_000)),
        r"8800000x8 pixels when the short side of 1x1100000 is 8, 70 million\. At most",
    ),
    "cut.webp": (lambda: saved("WEBP", lossless=True)[:-400], DAMAGED),
    "cut.png": (lambda: saved("PNG")[:-900], DAMAGED),
    "cut.tiff": (lambda: grey_tiff(40, 30, b"x" * 100), DAMAGED),
    "cut compressed.tiff": (lambda: saved("TIFF", compression="tiff_lzw")[:-300], DAMAGED),
    "cut.jp2": (lambda: saved("JPEG2000")[:-500], DAMAGED),
    "no pages.tiff": (lambda: b"II*\0\x08\0\0\0\0\0\0\0\0\0", DAMAGED),
    "page of itself.tiff": (lambda: b"II*\0\x04\0\0\0" + bytes(50), DAMAGED),
    "unknown compression.tiff": (
        lambda: tiff({256: 9, 257: 9, 258: 8, 259: 4711, 262: 1, 273: 8, 278: 9, 279: 9}, b"x" * 9),
        DAMAGED,
    ),
    "strip outside of the file.tiff": (
        lambda: tiff(
            {256: 9, 257: 9, 258: 8, 259: 1, 262: 1, 273: 2**31, 278: 9, 279: 81}, b"x" * 81
        ),
        DAMAGED,
    ),
    "wrong sum.png": (lambda: saved("PNG").replace(b"IDAT", b"IDAX", 1), DAMAGED),
    "rows of garbage.png": (
        lambda: (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", b"garbage" * 50)
            + chunk(b"IEND", b"")
        ),
        DAMAGED,
    ),
    "without its palette.png": (
        lambda: saved("PNG", Image.fromarray(NOISE).convert("P")).replace(b"PLTE", b"PLTX"),
        UNKNOWN,
    ),
    "text bomb.png": (
        lambda: with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        DAMAGED,
    ),
}
READ: dict[str, Callable[[], bytes]] = {
    "plain.png": lambda: saved("PNG"),
    "jpeg.png": lambda: saved("JPEG"),
    "garbage profile.png": lambda: saved("PNG", icc_profile=b"garbage" * 9),
    "garbage profile.jpg": lambda: saved("JPEG", icc_profile=b"\xff" * 900),
    "garbage exif.jpg": lambda: saved("JPEG", exif=b"Exif\0\0garbage"),
    "garbage exif.png": lambda: with_chunk(b"eXIf", b"\xff\x00garbage"),
    "exif that is its own folder.jpg": lambda: saved(
        "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    ),
    "palette of one colour.png": lambda: short_palette(b"\xff\0\0"),
    "palette of half a colour.png": lambda: short_palette(b"\xff"),
    "larger than its data.jpg": lambda: jpeg_of_other_size(4_000, 4_000),  # the rest is grey
    "thousand pages.tiff": lambda: saved(
        "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))] * 1000
    ),
    "next page is this.tiff": lambda: grey_tiff(40, 30, bytes(1200), next_page=1208),
    "many frames.gif": lambda: saved(
        "GIF", save_all=True, append_images=[Image.new("L", (40, 30), i) for i in range(250)]
    ),
}


def test_the_endings_are_those_that_pillow_knows_of_these_formats():
    Image.init()
    known = Image.registered_extensions()
    for name, endings in FORMATS.items():
        assert {known.get(ending, name) for ending in endings} <= {name, "DIB"}
    others = {known[ending] for ending in known.keys() - PICTURE_ENDINGS}
    assert {"EPS", "WMF", "HDF5", "MPEG", "FITS", "BUFR", "GRIB"} <= others


def test_there_are_many():
    assert len(REFUSED) + len(READ) >= 50


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    def run(*_: object, **__: object):
        raise AssertionError("a program was started")

    for starter in ("run", "Popen", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, starter, run)
    content, message = REFUSED[name]
    file = tmp_path / name
    file.write_bytes(content())
    with pytest.raises(DataError, match=rf"^{file}: ({message})") as caught:
        decode_image(file, 8)
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", READ)
def test_read_all_the_same(tmp_path: Path, name: str):
    file = tmp_path / name
    file.write_bytes(READ[name]())
    assert decode_image(file, 8).shape == (3, 8, 8)


def test_a_garbage_orientation_turns_nothing(tmp_path: Path):
    image = Image.fromarray(NOISE)
    image.save(tmp_path / "plain.png")
    for value in (0, 9, 65535):
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = value
        image.save(tmp_path / "x.png", exif=exif)
        assert (
            decode_image(tmp_path / "x.png", 8) == decode_image(tmp_path / "plain.png", 8)
        ).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
class TestNotFiles:
    @pytest.fixture
    def places(self, tmp_path: Path) -> dict[str, tuple[Path, str]]:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "nothing.png").symlink_to(tmp_path / "absent")
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        found = {
            "pipe": "a pipe or device",
            "zero": "a pipe or device",
            "folder": "a folder",
            "nothing": "No such file or directory",
            "loop": "Too many levels of symbolic links",
        }
        return {name: (tmp_path / f"{name}.png", words) for name, words in found.items()}

    @pytest.mark.parametrize("name", ["pipe", "zero", "folder", "nothing", "loop"])
    @pytest.mark.parametrize("read", [lambda file: decode_image(file, 8), content_key])
    def test_no_reader_is_kept_waiting(self, places: dict, name: str, read: Callable):
        file, words = places[name]
        caught: list[BaseException] = []

        def attempt() -> None:
            try:
                read(file)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(60)
        assert [type(error) for error in caught] == [DataError]
        assert str(caught[0]) == f"{file}: {words}. A file that this user may read"


class TestTheLimit:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        Image.new("L", (100, 50)).save(tmp_path / "x.png")
        return tmp_path / "x.png"

    def test_it_can_be_set(self, file: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FSL_MAX_PIXELS", "4999")
        with pytest.raises(
            DataError, match=r"x\.png: 100x50 pixels, 0 million\. At most 0\.004999 m"
        ):
            decode_image(file, 8)
        monkeypatch.setenv("FSL_MAX_PIXELS", "5000")
        assert decode_image(file, 8).shape == (3, 8, 8)

    def test_a_larger_one_holds_for_pillow_too(self, file: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        monkeypatch.setenv("FSL_MAX_PIXELS", "5000")
        assert decode_image(file, 8).shape == (3, 8, 8)
        assert Image.MAX_IMAGE_PIXELS == 5000

    @pytest.mark.parametrize("told", ["many", "-5", "0", "1e9", "²"])
    def test_what_is_no_number(self, file: Path, told: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FSL_MAX_PIXELS", told)
        with pytest.raises(
            DataError, match=r"variable FSL_MAX_PIXELS: '.*'\. A number of pixels, suc"
        ):
            decode_image(file, 8)

    def test_pillows_own_is_higher(self):
        assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS >= MAX_PIXELS


def test_random_damage_ends_in_one_line(tmp_path: Path):
    """Bytes changed, cut out and repeated in files of every format that can be written here."""
    random = np.random.default_rng(0)
    kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "JPEG2000"]
    file, read, refused = tmp_path / "x.png", 0, []
    for kind in kinds:
        whole = saved(kind, Image.fromarray(NOISE[:9, :11]))
        for _ in range(25):
            content = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(0, len(content)))
                content[at] = int(random.integers(0, 256))
            cut = int(random.integers(0, len(content))) if random.random() < 0.3 else len(content)
            file.write_bytes(content[:cut])
            try:
                read += decode_image(file, 8).shape == (3, 8, 8)
            except DataError as error:
                refused.append(str(error))
    assert read > 20 < len(refused)
    assert all(line.startswith(f"{file}: ") and "\n" not in line for line in refused)

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import fsl_core
from fsl_core.data.vision import (
    TURNS,
    decode_image,
    decode_images,
    refuse_faults,
    to_pixels,
    torchvision,
    torchvision_dataset,
    transforms,
)
from fsl_core.errors import DataError

ROOT = Path(fsl_core.__file__).parents[1]
RESIZE = """
import torch
{before}
from fsl_core.data.vision import transforms
{after}
print(tuple(transforms().resize(torch.zeros(1, 9, 9), [3]).shape))
import torchvision
from fsl_core.data.vision import torchvision as same
assert same() is torchvision is same()
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        (
            "from fsl_core.data.vision import torchvision; torchvision(); torchvision.cache_clear()",
            "",
        ),
    ],
    ids=["first", "imported before"],
)
def test_torchvision_imports_and_resizes_in_a_fresh_process(before: str, after: str):
    code = RESIZE.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 3, 3)\n"


def test_importing_the_module_does_not_import_torchvision():
    code = "import sys, fsl_core.data.vision; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_other_module_imports_torchvision():
    files = [*ROOT.glob("fsl_core/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
    assert len(files) > 20
    for file in files:
        if file == ROOT / "fsl_core" / "data" / "vision.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [
                    a.value
                    for a in node.args
                    if isinstance(a, ast.Constant) and isinstance(a.value, str)
                ]
            assert not [name for name in names if name.split(".")[0] == "torchvision"], (
                f"{file} imports torchvision"
            )


def test_another_import_error_is_not_swallowed(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str):
        raise RuntimeError("something else")

    monkeypatch.setattr("fsl_core.data.vision.import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision.__wrapped__()


def test_what_torchvision_cannot_read_is_one_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"reading MNIST failed \(Dataset not found.*The files in"):
        torchvision_dataset("MNIST", tmp_path, train=True)


class TestDecodeImage:
    @pytest.fixture
    def rgb(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

    @pytest.mark.parametrize(
        "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "I;16"]
    )
    @pytest.mark.parametrize("channels", ["rgb", "gray"])
    def test_every_mode(self, tmp_path: Path, rgb: np.ndarray, mode: str, channels: str):
        image = Image.fromarray(rgb)
        if mode == "I;16":
            image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
        elif mode == "LAB":
            image = Image.frombytes("LAB", image.size, image.tobytes())
        else:
            image = image.convert("L").convert(mode) if mode in "1LA" else image.convert(mode)
        file = tmp_path / ("x.png" if mode in ("1", "P", "RGBA", "LA") else "x.tiff")
        image.save(file)
        x = decode_image(file, 20, channels)
        assert x.shape == ({"rgb": 3, "gray": 1}[channels], 20, 20)
        assert x.dtype == torch.uint8
        assert len(x.unique()) > (1 if mode == "1" else 16)

    @pytest.mark.parametrize("mode", ["HSV", "La", "RGBa", "RGBX", "I;16B", "I;16L"])
    @pytest.mark.parametrize("channels", ["rgb", "gray"])
    def test_modes_that_no_file_has(self, mode: str, channels: str):
        image = Image.new(mode, (9, 9), 0x7FFF if mode.startswith("I") else None)
        x = to_pixels(image, 8, channels)
        assert x.shape == ({"rgb": 3, "gray": 1}[channels], 8, 8)
        assert len(x.unique()) == 1

    @pytest.mark.parametrize("size", [(40, 60), (61, 40), (9, 70), (20, 20), (8, 8), (7, 33)])
    @pytest.mark.parametrize("channels", ["rgb", "gray"])
    def test_the_numbers_are_those_of_torchvision(
        self, tmp_path: Path, size: tuple[int, int], channels: str
    ):
        noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert({"rgb": "RGB", "gray": "L"}[channels])
        image.save(tmp_path / "x.png")
        v2 = transforms()
        expected = v2.pil_to_tensor(v2.center_crop(v2.resize(image, [20]), [20, 20]))
        assert torch.equal(decode_image(tmp_path / "x.png", 20, channels), expected)

    def test_short_side_then_centre(self, tmp_path: Path):
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, 20:40] = 200
        Image.fromarray(wide).save(tmp_path / "x.png")
        x = decode_image(tmp_path / "x.png", 10)
        assert (x[:, :, 1:-1] == 200).all()
        assert (decode_image(tmp_path / "x.png", 20) == 200).all()

    def test_agrees_with_torchvision_on_a_photograph(self, tmp_path: Path, rgb: np.ndarray):
        Image.fromarray(rgb).save(tmp_path / "x.png")
        v2 = transforms()
        other = v2.center_crop(
            v2.resize(torch.from_numpy(rgb).permute(2, 0, 1), [16], antialias=True), [16, 16]
        )
        assert (
            decode_image(tmp_path / "x.png", 16).int() - other.int()
        ).abs().max() <= 1  # PIL and torch round on their own

    @pytest.mark.parametrize(
        ("mode", "ending"),
        [("L", "png"), ("RGB", "tiff"), ("CMYK", "tiff"), ("RGB", "jpg"), ("CMYK", "jpg")],
    )
    @pytest.mark.parametrize("orientation", range(1, 10))
    def test_every_orientation(
        self, tmp_path: Path, rgb: np.ndarray, mode: str, ending: str, orientation: int
    ):
        image = Image.fromarray(rgb).convert(mode)
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(tmp_path / f"x.{ending}", exif=exif, quality=95)
        turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        expected = to_pixels(turned, 20).int()
        found = decode_image(tmp_path / f"x.{ending}", 20).int()
        assert (found - expected).abs().max() <= (40 if ending == "jpg" else 0)

    def test_16_bits_keep_their_range(self, tmp_path: Path):
        Image.fromarray(np.array([[0, 0x0100], [0x7FFF, 0xFFFF]], np.uint16)).save(
            tmp_path / "x.png"
        )
        assert decode_image(tmp_path / "x.png", 2, "gray")[0].tolist() == [[0, 1], [0x7F, 0xFF]]

    def test_transparent_parts_are_white(self, tmp_path: Path):
        Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.png")
        assert (decode_image(tmp_path / "x.png", 4) == 255).all()
        palette = Image.new("P", (4, 4), 0)
        palette.save(tmp_path / "p.png", transparency=0)
        assert (decode_image(tmp_path / "p.png", 4) == 255).all()

    def test_exif_orientation_is_followed(self, tmp_path: Path):
        tall = np.zeros((20, 10), np.uint8)
        tall[:10] = 255  # white above black
        image = Image.fromarray(tall)
        exif = image.getexif()
        exif[0x0112] = 3  # turned by 180 degrees
        image.save(tmp_path / "x.png", exif=exif)
        x = decode_image(tmp_path / "x.png", 10, "gray")[0]
        assert x[0].float().mean() < 128 < x[-1].float().mean()

    def test_a_file_that_is_no_image(self, tmp_path: Path):
        (tmp_path / "x.jpg").write_text("hello")
        with pytest.raises(DataError, match=r"x\.jpg: not a readable image \(of no known format\)"):
            decode_image(tmp_path / "x.jpg", 8)

    @pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif"])
    def test_a_truncated_file(self, tmp_path: Path, rgb: np.ndarray, ending: str):
        file = tmp_path / f"x.{ending}"
        Image.fromarray(rgb).save(file)
        file.write_bytes(file.read_bytes()[:-600])
        with pytest.raises(
            DataError,
            match=rf"x\.{ending}: not a readable image \(.*\)\. A whole image file, or none",
        ):
            decode_image(file, 8)


class TestDecodeImages:
    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        for i in range(70):
            Image.new("L", (9, 9), i).save(tmp_path / f"{i:02}.png")
        return sorted(tmp_path.iterdir())

    @pytest.mark.parametrize("threads", [1, 3])
    def test_rows_are_in_the_order_of_the_files(
        self, files: list[Path], threads: int, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("torch.get_num_threads", lambda: threads)
        before = list(warnings.filters)
        images, faults = decode_images(files, lambda file: decode_image(file, 8, "gray"), (1, 8, 8))
        assert not faults
        assert images[:, 0, 0, 0].tolist() == list(range(70))
        assert warnings.filters == before

    def test_every_fault_is_told(self, files: list[Path]):
        for i in (40, 3, 50):
            files[i].write_bytes(b"junk")
        images, faults = decode_images(files, lambda file: decode_image(file, 8, "gray"), (1, 8, 8))
        assert images[41, 0, 0, 0] == 41
        assert list(faults) == [3, 40, 50]
        with pytest.raises(DataError) as caught:
            refuse_faults(files, faults, "Whole files")
        *lines, last = str(caught.value).splitlines()
        assert [line.partition(": ")[0] for line in lines] == [str(files[i]) for i in (3, 40, 50)]
        assert last == "3 of 70 pictures and folders cannot be read. Whole files"

    def test_pictures_without_a_rule_are_told_together_with_the_range_of_all(self, tmp_path: Path):
        files = [tmp_path / f"{i}.tiff" for i in range(3)]
        for i, file in enumerate(files):
            Image.fromarray(np.float32([[i, -10.0 * i]])).save(file)
        _, faults = decode_images(files, lambda file: decode_image(file, 8), (3, 8, 8))
        assert len(faults) == 3
        with pytest.raises(DataError) as caught:
            refuse_faults(files, faults, "Whole files")
        assert str(caught.value) == (
            f"{files[0]} and 2 more pictures: float numbers from -20 to 2, and nothing says which "
            "of them are black and white. The option `value_range: [-20, 2]` of image-folder, or "
            "pictures of 8 bits"
        )

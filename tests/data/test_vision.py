from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core
from fsl_core.data.vision import decode_image, torchvision, torchvision_dataset, transforms
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


def test_a_download_that_fails_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        DataError,
        match=r"data: download of Omniglot failed \(network is unreachable\)\. A network connection",
    ):
        torchvision_dataset("Omniglot", tmp_path / "data", background=True)


class TestDecodeImage:
    @pytest.fixture
    def rgb(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
    @pytest.mark.parametrize("channels", ["rgb", "gray"])
    def test_every_mode(self, tmp_path: Path, rgb: np.ndarray, mode: str, channels: str):
        image = Image.fromarray(rgb)
        if mode == "I;16":
            image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
        else:
            image = image.convert("L").convert(mode) if mode in "1ILAF" else image.convert(mode)
        file = tmp_path / ("x.tiff" if mode in ("CMYK", "I;16", "I", "F") else "x.png")
        image.save(file)
        x = decode_image(file, 20, channels)
        assert x.shape == ({"rgb": 3, "gray": 1}[channels], 20, 20)
        assert x.dtype == torch.uint8

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
        with pytest.raises(
            DataError, match=r"x\.jpg: not a readable image \(cannot identify image file"
        ):
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

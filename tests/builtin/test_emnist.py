"""Made-up files in the format that torchvision reads; each image shows its own number."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin import emnist
from fsl_core.builtin.emnist import Emnist
from fsl_core.data.vision import torchvision

PER_CLASS = 6


def content(part: str) -> dict[str, bytes]:
    """Two thirds of the images to train, the rest to test; all 62 classes in turn."""
    count = 62 * PER_CLASS
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    images[:, 1, 0], images[:, 2, 0] = np.divmod(np.arange(count), 256)
    rows = slice(0, count * 2 // 3) if part == "train" else slice(count * 2 // 3, None)
    images, labels = images[rows], (np.arange(count) % 62).astype(np.uint8)[rows]
    return {
        "images-idx3": struct.pack(">4i", 2051, len(images), 28, 28) + images.tobytes(),
        "labels-idx1": struct.pack(">2i", 2049, len(labels)) + labels.tobytes(),
    }


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As torchvision leaves them: unpacked."""
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSL_DATA", raising=False)
    raw = tmp_path / "data" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        for what, data in content(part).items():
            (raw / f"emnist-byclass-{part}-{what}-ubyte").write_bytes(data)
    return tmp_path / "data"


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 1].int() * 256 + images[:, 0, 0, 2]).tolist()


def test_names_are_those_of_torchvision():
    assert list(emnist.CLASSES) == torchvision().datasets.EMNIST.classes_split_dict["byclass"]


def test_even_classes_validate_and_odd_ones_test(root: Path):
    source = Emnist(root=root, n_query=5)
    validation, test = source.pool("validation"), source.pool("test")
    assert validation.classes[:6] == ("0", "2", "4", "6", "8", "A")
    assert test.classes[-2:] == ("x", "z")
    assert len(validation.classes) == len(test.classes) == 31
    assert set(validation.counts + test.counts) == {PER_CLASS}
    # class 1 is number 1, 63, 125, ... of all, read along the columns of the file's pictures
    assert numbers(test.select(["1"]).items) == [1 + 62 * i for i in range(PER_CLASS)]
    assert source.batch("test", range(3), 0).support.x.shape == (3, 5, 1, 28, 28)


def test_nothing_to_train_on(root: Path):
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'emnist': split 'train' has 0 classes\. n_way: 5 needs at least 5$",
    ):
        Emnist(root=root).check("train")
    source = Emnist(root=root, split="by-class")
    classes = [source.pool(part).classes for part in ("train", "validation", "test")]
    assert [len(names) for names in classes] == [31, 16, 15]
    assert len(set(sum(classes, ()))) == 62


@pytest.mark.parametrize("layout", ["packed", "archive", "the folder itself"])
def test_layouts_give_the_same_images(root: Path, layout: str):
    expected = Emnist(root=root).pool("test").digest
    raw = root / "EMNIST" / "raw"
    files = {file.name: file.read_bytes() for file in raw.iterdir()}
    if layout == "the folder itself":
        root = raw
    else:
        for name, data in files.items():
            (raw / name).unlink()
            (raw / f"{name}.gz").write_bytes(gzip.compress(data))
    if layout == "archive":
        with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
            for file in raw.glob("*.gz"):
                archive.write(file, f"gzip/{file.name}")
                file.unlink()
    assert Emnist(root=root).pool("test").digest == expected


def test_the_archive_is_downloaded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From torchvision's address, answered from the made-up files."""
    expected, packed = Emnist(root=root).pool("test").digest, io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in (root / "EMNIST" / "raw").iterdir():
            archive.writestr(f"gzip/{file.name}.gz", gzip.compress(file.read_bytes()))
    published, asked = torchvision().datasets.EMNIST, []

    def served(request, **_):
        asked.append(request.full_url)
        response = io.BytesIO(packed.getvalue())
        response.url, response.length = request.full_url, len(packed.getvalue())
        return response

    monkeypatch.setattr("urllib.request.urlopen", served)
    monkeypatch.setattr(published, "md5", hashlib.md5(packed.getvalue()).hexdigest())
    source = Emnist()
    assert source.pool("test").digest == expected
    assert source.fetch() == tmp_path / "cache" / "datasets" / "EMNIST" / "raw"
    assert asked == [published.url]


def test_damaged_files(root: Path):
    file = root / "EMNIST" / "raw" / "emnist-byclass-test-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    fit = r"Delete its files and fetch them again$"
    with pytest.raises(fsl.DataError, match=r"raw: not the characters of EMNIST \(.*\)\. " + fit):
        Emnist(root=root).pool("test")
    file.unlink()
    (file.parent / f"{file.name}.gz").write_bytes(b"not packed")
    with pytest.raises(fsl.DataError, match=r"EMNIST \(Not a gzipped file .*\)\. " + fit):
        Emnist(root=root).pool("test")


def test_absent_and_not_to_be_downloaded(root: Path):
    (root / "EMNIST" / "raw" / "emnist-byclass-test-labels-idx1-ubyte").unlink()
    found = r"^episodes 'emnist': not all four files of EMNIST in .*raw or .*data \(download: false\)\. "
    fit = r"gzip\.zip of EMNIST, or .*`-s episodes\.root=DIR` or FSL_DATA$"
    with pytest.raises(fsl.DataError, match=found + fit):
        Emnist(root=root, download=False).check("test")

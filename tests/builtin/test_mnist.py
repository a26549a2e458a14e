from __future__ import annotations

import gzip
import os
import struct
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin import mnist
from fsl_core.builtin.mnist import Mnist
from fsl_core.data.vision import torchvision

PROJECT = Path(fsl.__file__).parents[1]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """700 images of ten digits in turn; each shows its own number in its first two pixels."""
    images = np.random.default_rng(0).integers(0, 256, (700, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(700), 256)
    return images, (np.arange(700) % 10).astype(np.uint8)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """600 images to train and 100 to test, packed as the real files are."""
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSL_DATA", raising=False)
    monkeypatch.setattr(mnist, "VALIDATION", 100)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, rows in {"train": slice(0, 600), "t10k": slice(600, 700)}.items():
        images, labels = (array[rows] for array in digits())
        header = struct.pack(">4i", 2051, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())
        )
    sums = {name: md5((raw / f"{name}.gz").read_bytes()).hexdigest() for name in mnist.CHECKSUMS}
    monkeypatch.setattr(mnist, "CHECKSUMS", sums)
    return tmp_path / "data"


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() * 256 + images[:, 0, 0, 1]).tolist()


def test_checksums_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert {f"{name}.gz": md5 for name, md5 in mnist.CHECKSUMS.items()} == dict(
        torchvision().datasets.MNIST.resources
    )


def test_by_class(root: Path):
    source = Mnist(root=root)
    classes = {split: source.pool(split).classes for split in ("train", "validation", "test")}
    assert classes == {"train": tuple("012345"), "validation": tuple("67"), "test": tuple("89")}
    for split in classes:
        for name, images in source.pool(split).by_class():
            assert numbers(images) == list(range(int(name), 700, 10))
            assert np.array_equal(images[:, 0], digits()[0][int(name) :: 10])


def test_by_image(root: Path):
    source = Mnist(root=root, split="by-image", n_way=10)
    for split, rows in {
        "train": range(500),
        "validation": range(500, 600),
        "test": range(600, 700),
    }.items():
        pool = source.pool(split)
        assert pool.classes == tuple("0123456789")
        assert numbers(pool.items) == [i for digit in range(10) for i in rows if i % 10 == digit]


def test_two_digits_with_permuted_labels(root: Path):
    """Every episode has the same two digits, and either is 0 in about half of them."""
    chosen = {key: [3, 8] for key in ("train_digits", "validation_digits", "test_digits")}
    batch = Mnist(root=root, split="by-image", **chosen).batch("train", range(200), 0)
    shown = (
        (batch.support.x[:, :, 0, 0, :2] * 255).round().int()
        @ torch.tensor([256, 1], dtype=torch.int32)
        % 10
    )
    assert set(map(tuple, shown.tolist())) == {(3, 8), (8, 3)}
    assert 60 < (shown[:, 0] == 3).sum() < 140


@pytest.mark.parametrize("layout", ["unpacked", "raw", "root"])
def test_layouts_give_the_same_images(root: Path, layout: str):
    expected = Mnist(root=root).pool("train").digest
    raw = root / "MNIST" / "raw"
    if layout == "unpacked":
        for file in raw.iterdir():
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()
    else:
        raw.rename(root / "raw")
    assert (
        Mnist(root=root / "raw" if layout == "root" else root, download=False).pool("train").digest
        == expected
    )


def test_a_wrong_checksum(root: Path):
    file = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    right = md5(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(
        fsl.DataError,
        match=rf"t10k-labels-idx1-ubyte\.gz: md5 \w+\. {right}: delete the file and fetch it again",
    ):
        Mnist(root=root).check("train")


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_damaged_unpacked_files(root: Path, kept: int):
    raw = root / "MNIST" / "raw"
    for file in list(raw.iterdir()):
        (raw / file.stem).write_bytes(
            gzip.decompress(file.read_bytes())[: kept if "t10k-images" in file.name else None]
        )
        file.unlink()
    with pytest.raises(
        fsl.DataError,
        match=r"raw: not the digits of MNIST \(.*\)\. Delete its files and fetch them again",
    ):
        Mnist(root=root).check("train")


def test_absent_and_not_to_be_downloaded(root: Path):
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    found = (
        r"^episodes 'mnist': not all four files of MNIST in .*raw or .*data "
        r"\(download: false\)\. train-images-idx3-ubyte\.gz, "
    )
    with pytest.raises(fsl.DataError, match=found + r".*`-s episodes\.root=DIR` or FSL_DATA$"):
        Mnist(root=root, download=False).check("train")
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'mnist': .*nowhere: named by option root, but no such folder.*t10k-labels",
    ):
        Mnist(root=root / "nowhere").check("train")


def test_absent_and_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        fsl.DataError, match=r"datasets \(.*gz: download failed \(network is unreachable"
    ) as raised:
        Mnist().check("train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"test_digits": [5, 9]},
            r"^digits \[5\] are in two splits \(train \[0, 1, .*Each digit in one split, or split: by-image",
        ),
        ({"train_digits": [1, 1]}, r"^train_digits: \[1, 1\]\. Every digit once"),
    ],
)
def test_digits_that_do_not_fit(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Mnist(**options)


def test_more_ways_than_digits(root: Path):
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'mnist': split 'test' has 2 classes\. n_way: 3 needs at least 3$",
    ):
        Mnist(n_way=3, root=root).check("test")


@pytest.mark.slow
def test_real_digits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the toy checksums, and FSL_DATA
    folders = (os.environ.get("FSL_DATA"), PROJECT.parent / "shared" / "data")
    root = next((Path(f) for f in folders if f and (Path(f) / "MNIST" / "raw").is_dir()), None)
    if root is None:
        pytest.skip("no folder MNIST/raw in FSL_DATA or ../shared/data")
    source = Mnist(root=root, download=False)
    counts = sum((source.pool(split).counts for split in ("train", "validation", "test")), ())
    assert counts == (
        6903,
        7877,
        6990,
        7141,
        6824,
        6313,
        6876,
        7293,
        6825,
        6958,
    )  # of the 70,000 labels, digit by digit
    by_image = Mnist(root=root, split="by-image", n_way=10, download=False)
    assert by_image.pool("test").counts == (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    assert sum(by_image.pool("train").counts) == 50_000
    images = by_image.pool("test").items
    assert 0.1 < (images > 127).float().mean() < 0.2  # ink is 1, and little of the page

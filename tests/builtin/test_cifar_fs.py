from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from hashlib import md5
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.builtin import cifar_fs
from fsl_core.builtin.cifar_fs import CifarFs, class_lists
from fsl_core.data.vision import torchvision

PROJECT = Path(fsl.__file__).parents[1]
SPLITS = ("train", "validation", "test")
TOY = {"train": ["apple", "train"], "validation": ["beaver"], "test": ["baby", "bed"]}
EVERY = ["apple", "baby", "beaver", "bed", "train"]


class TestClassLists:
    @pytest.mark.parametrize(
        ("split", "sizes"), [("cifar-fs", [64, 16, 20]), ("fc100", [60, 20, 20])]
    )
    def test_every_class_is_in_one_split(self, split: str, sizes: list[int]):
        lists = class_lists(split)
        assert [len(lists[part]) for part in SPLITS] == sizes
        assert len(set(chain(*lists.values()))) == 100

    def test_both_divide_the_same_classes(self):
        assert set(chain(*class_lists("cifar-fs").values())) == set(
            chain(*class_lists("fc100").values())
        )

    def test_fc100_keeps_superclasses_together(self):
        """Three of CIFAR-100's 20 superclasses, all five classes of each."""
        superclasses = [
            ["aquarium_fish", "flatfish", "ray", "shark", "trout"],
            ["baby", "boy", "girl", "man", "woman"],
            ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
        ]
        for names in superclasses:
            assert (
                len(
                    {
                        part
                        for part, classes in class_lists("fc100").items()
                        if set(names) & set(classes)
                    }
                )
                == 1
            )


def pixels() -> dict[str, np.ndarray]:
    """Five classes, one called train, of six random pictures."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8) for name in EVERY}


def save_grids(folder: Path) -> None:
    for split, names in {
        "train": TOY["train"],
        "val": TOY["validation"],
        "test": TOY["test"],
    }.items():
        (folder / split).mkdir(parents=True)
        for name in names:
            grid = pixels()[name].reshape(3, 2, 32, 32, 3).swapaxes(1, 2).reshape(96, 64, 3)
            Image.fromarray(grid).save(folder / split / f"{name}.webp", lossless=True)


def save_folders(folder: Path) -> None:
    for name, images in pixels().items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images[::-1]):
            Image.fromarray(image).save(folder / name / f"{i}.png")


def save_archive(folder: Path) -> None:
    """CIFAR-100's three files with the toy pictures: five of a class in `train`, one in `test`."""
    (folder / "cifar-100-python").mkdir(parents=True)
    for part, rows in {"train": slice(0, 5), "test": slice(5, 6)}.items():
        images = np.concatenate([images[rows] for images in pixels().values()])
        labels = np.arange(5).repeat(len(images) // 5)
        mixed = np.random.default_rng(1).permutation(len(images))
        content = {
            "data": images.transpose(0, 3, 1, 2).reshape(-1, 3072)[mixed],
            "fine_labels": labels[mixed].tolist(),
        }
        (folder / "cifar-100-python" / part).write_bytes(pickle.dumps(content))
    (folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": EVERY}))


LAYOUTS = {
    "grids": save_grids,
    "grids inside cifarfs": lambda root: save_grids(root / "cifarfs"),
    "folders": save_folders,
    "folders inside cifar100": lambda root: save_folders(root / "cifar100" / "data"),
    "torchvision": save_archive,
}


class TestToyFiles:
    @pytest.fixture(autouse=True)
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("FSL_DATA", raising=False)
        monkeypatch.setattr(cifar_fs, "class_lists", lambda split: TOY)
        monkeypatch.setattr(cifar_fs, "PER_CLASS", 6)
        (tmp_path / "data").mkdir()
        return tmp_path / "data"

    @pytest.fixture
    def checksums(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """torchvision expects the toy archive."""
        save_archive(tmp_path / "published")
        dataset = torchvision().datasets.CIFAR100
        sums = {
            f.name: md5(f.read_bytes()).hexdigest()
            for f in (tmp_path / "published" / "cifar-100-python").iterdir()
        }
        monkeypatch.setattr(dataset, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(dataset, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["meta"]})

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.usefixtures("checksums")
    def test_every_source_gives_the_same_pool(self, root: Path, layout: str):
        LAYOUTS[layout](root)
        source = CifarFs(root=root, download=False)
        for split in SPLITS:
            pool = source.pool(split)
            assert pool.classes == tuple(TOY[split])
            assert pool.counts == (6,) * len(TOY[split])
            for name, images in pool.by_class():
                expected = sorted(
                    pixels()[name], key=lambda image: md5(image.tobytes()).hexdigest()
                )
                assert np.array_equal(images, np.stack(expected).transpose(0, 3, 1, 2))

    def test_episodes(self, root: Path):
        save_grids(root)
        batch = CifarFs(n_way=2, n_shot=1, n_query=3, root=root, augment="crop-flip").batch(
            "train", range(4), seed=0
        )
        assert batch.query.x.shape == (4, 6, 3, 32, 32)
        assert batch.query.x.min() >= 0
        assert 0.5 < batch.query.x.max() <= 1

    def test_images_are_decoded_once(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        save_folders(root)
        first = CifarFs(root=root).pool("test").digest
        monkeypatch.setattr(cifar_fs, "_read", lambda *_: pytest.fail("decoded again"))
        assert CifarFs(root=root).pool("test").digest == first
        Image.new("RGB", (32, 32), "red").save(root / "baby" / "0.png")
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            CifarFs(root=root).pool("test")

    def test_a_class_that_is_missing(self, root: Path):
        save_folders(root)
        shutil.rmtree(root / "train")
        with pytest.raises(
            fsl.DataError,
            match=r"^episodes 'cifar-fs': .*: 1 of 2 classes, not train\. All of them, or none",
        ):
            CifarFs(root=root).check("train")

    @pytest.mark.parametrize("ending", ["webp", "png"])
    def test_too_few_images(self, root: Path, ending: str):
        if ending == "png":
            save_folders(root)
            (root / "train" / "3.png").unlink()
        else:
            save_grids(root)
            Image.new("RGB", (32, 160)).save(root / "train" / "train.webp", lossless=True)
        with pytest.raises(
            fsl.DataError,
            match=r"train(\.webp)?: 5 images of 32x32\. 6, all that CIFAR-100 has of a class",
        ):
            CifarFs(root=root).check("train")

    def test_an_empty_class_folder(self, root: Path):
        save_folders(root)
        for file in (root / "train").iterdir():
            file.unlink()
        with pytest.raises(
            fsl.DataError, match=r"train: no images in this class folder\. At least one file"
        ):
            CifarFs(root=root).check("train")

    @pytest.mark.parametrize("kept", [0, 40, 400])
    def test_a_broken_grid(self, root: Path, kept: int):
        save_grids(root)
        file = root / "train" / "apple.webp"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(
            fsl.DataError, match=r"apple\.webp: not a readable image \(.*\)\. A whole image file"
        ):
            CifarFs(root=root).check("train")

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((64, 40), r"2\.png: 64x40 pixels\. 32x32, or a grid"),
            ((64, 64), r"2\.png: not one picture of 32x32 pixels\. "),
        ],
    )
    def test_pictures_of_another_size(self, root: Path, size: tuple[int, int], message: str):
        save_folders(root)
        Image.new("RGB", size).save(root / "apple" / "2.png")
        with pytest.raises(fsl.DataError, match=message):
            CifarFs(root=root).check("train")

    @pytest.mark.usefixtures("checksums")
    def test_a_damaged_archive(self, root: Path):
        save_archive(root)
        file = root / "cifar-100-python" / "test"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(
            fsl.DataError,
            match=r"cifar-100-python: not as published\. Delete it and unpack the archive of",
        ):
            CifarFs(root=root).check("train")

    def test_absent_and_not_to_be_downloaded(self, root: Path):
        found = r"^episodes 'cifar-fs': no class files or folders, and no whole cifar-100-python, in .* \(download: false\)\. "
        fit = r"apple\.webp or a folder apple and so on, or cifar-100-python of .*`-s episodes\.root=DIR` or FSL_DATA$"
        with pytest.raises(fsl.DataError, match=found + fit):
            CifarFs(root=root, download=False).check("train")
        with pytest.raises(
            fsl.DataError,
            match=r"^episodes 'cifar-fs': .*nowhere: named by option root, .*apple\.webp or",
        ):
            CifarFs(root=root / "nowhere").check("train")

    def test_absent_and_without_a_network(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        def unreachable(*_, **__):
            raise OSError("network is unreachable")

        monkeypatch.setattr("urllib.request.urlopen", unreachable)
        with pytest.raises(
            fsl.DataError,
            match=r"in .*data \(.*gz: download failed \(network is unreachable\)",
        ):
            CifarFs(root=root).check("train")

    @pytest.mark.usefixtures("checksums")
    def test_absent_and_downloaded(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """From torchvision's address, answered from the toy archive."""
        packed = Path(
            shutil.make_archive(
                str(tmp_path / "packed"), "gztar", tmp_path / "published", "cifar-100-python"
            )
        )

        monkeypatch.setattr(
            torchvision().datasets.CIFAR100, "tgz_md5", md5(packed.read_bytes()).hexdigest()
        )
        monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Served(packed, a[0]))
        assert CifarFs(root=root).pool("test").classes == ("baby", "bed")
        assert (root / "cifar-100-python" / "train").is_file()


class Served:
    """What urlopen answers, from a file."""

    def __init__(self, file: Path, request: object):
        self._file, self.length = file.open("rb"), file.stat().st_size
        self.url = getattr(request, "full_url", request)

    def read(self, n: int = -1) -> bytes:
        return self._file.read(n)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.slow
class TestRealImages:
    @pytest.fixture
    def root(self) -> Path:
        for folder in (os.environ.get("FSL_DATA"), PROJECT.parent / "shared" / "data"):
            if folder and (Path(folder) / "cifarfs").is_dir():
                return Path(folder)
        pytest.skip("no folder cifarfs in FSL_DATA or ../shared/data")

    @pytest.fixture
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
        yield
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    @pytest.mark.usefixtures("own_cache")
    def test_counts_and_duplicates(self, root: Path):
        seen: dict[str, list[tuple[str, str]]] = {}
        source = CifarFs(root=root, download=False)
        for split, n_classes in zip(SPLITS, (64, 16, 20), strict=True):
            pool = source.pool(split)
            assert pool.counts == (600,) * n_classes
            for name, images in pool.by_class():
                digests = [
                    md5(image.tobytes()).hexdigest()
                    for image in images.permute(0, 2, 3, 1).contiguous().numpy()
                ]
                assert digests == sorted(digests)
                for digest in digests:
                    seen.setdefault(digest, []).append((split, name))
        twice = [places for places in seen.values() if len(places) > 1]
        assert [len(places) for places in twice] == [2] * 26
        assert sum(len({split for split, _ in places}) == 2 for places in twice) == 15
        assert sum(places == [("train", "aquarium_fish")] * 2 for places in twice) == 9

    @pytest.mark.usefixtures("own_cache")
    def test_fc100_from_the_same_files(self, root: Path):
        source = CifarFs(root=root, split="fc100", download=False)
        assert [len(source.pool(split).classes) for split in ("validation", "test")] == [20, 20]
        batch = source.batch("test", range(3), 0)
        assert batch.support.x.shape == (3, 5, 3, 32, 32)
        assert 0.3 < batch.query.x.mean() < 0.7
        assert not torch.equal(batch.support.x[0], batch.support.x[1])

    def test_classes_are_those_of_the_published_lists(self, root: Path):
        if not (root / "splits").is_dir():
            pytest.skip("no published split lists beside the images")
        for split in ("cifar-fs", "fc100"):
            for part, file in {"train": "train", "validation": "val", "test": "test"}.items():
                assert (
                    class_lists(split)[part]
                    == (root / "splits" / split / f"{file}.txt").read_text().split()
                )

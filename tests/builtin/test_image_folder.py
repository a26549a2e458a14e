from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.builtin import image_folder
from fsl_core.builtin.image_folder import ImageFolder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))


def paint(folder: Path, n: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    """n images of one colour, which is different for every class and image."""
    folder.mkdir(parents=True)
    for i in range(n):
        colour = (10 * i, sum(folder.name.encode()) % 256, 7)
        Image.new("RGB", size, colour).convert(mode).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten classes with 3 to 12 images."""
    for i in range(10):
        paint(tmp_path / "data" / f"class{i}", 3 + i)
    return tmp_path / "data"


def small(root: Path, **options: object) -> ImageFolder:
    return ImageFolder(root, **{"n_way": 2, "n_shot": 1, "n_query": 2, "image_size": 8, **options})


def test_classes_are_shared_out_by_fractions(root: Path):
    source = small(root)
    splits = {
        split: [f.name for f in source.class_folders(split)]
        for split in ("train", "validation", "test")
    }
    assert [len(names) for names in splits.values()] == [6, 2, 2]
    assert sorted(chain(*splits.values())) == [f"class{i}" for i in range(10)]
    assert all(names == sorted(names) for names in splits.values())
    assert small(root).class_folders("train") == source.class_folders("train")
    assert small(root, split_seed=1).class_folders("train") != source.class_folders("train")
    assert [len(small(root, fractions=(1, 0, 1)).class_folders(s)) for s in splits] == [5, 0, 5]


def test_episodes(root: Path):
    source = small(root)
    batch = source.batch("train", range(5), seed=0)
    assert batch.support.x.shape == (5, 2, 3, 8, 8)
    assert source.task.input_shape == (3, 8, 8)
    pool = source.pool("train")
    assert dict(zip(pool.classes, pool.counts, strict=True)) == {
        f.name: 3 + int(f.name[-1]) for f in source.class_folders("train")
    }


def test_gray(root: Path):
    assert small(root, channels="gray").batch("train", [0], 0).query.x.shape == (1, 4, 1, 8, 8)


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_a_folder_for_each_split(tmp_path: Path, validation: str):
    for split in ("train", validation, "test"):
        for c in "ab":
            paint(tmp_path / split / f"{split}-{c}", 3)
    source = small(tmp_path)
    assert source.pool("train").classes == ("train-a", "train-b")
    assert source.pool("validation").classes == (f"{validation}-a", f"{validation}-b")
    assert source.pool("test").classes == ("test-a", "test-b")


def test_a_split_without_its_folder(tmp_path: Path):
    paint(tmp_path / "train" / "a", 3)
    paint(tmp_path / "test" / "a", 3)
    with pytest.raises(
        fsl.DataError, match="has no classes in a folder validation or val, only in test, train"
    ):
        small(tmp_path).check("validation")


def test_sizes_modes_subfolders_and_other_files(tmp_path: Path):
    for i, (mode, size) in enumerate(
        [("RGB", (30, 9)), ("P", (8, 8)), ("RGBA", (5, 40)), ("L", (100, 100)), ("1", (9, 9))]
    ):
        paint(tmp_path / f"c{i}", 4, size, mode)
    paint(tmp_path / "c0" / "more", 2)
    (tmp_path / "c0" / "notes.txt").write_text("not an image")
    (tmp_path / "c0" / "._0.png").write_text("not an image either")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c1" / "0.png").rename(tmp_path / "c1" / "0.PNG")
    pool = small(tmp_path, fractions=(1, 0, 0)).pool("train")
    assert pool.counts == (6, 4, 4, 4, 4)
    assert pool.images.shape == (22, 3, 8, 8)


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    first = small(root).pool("train").digest
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode_image", lambda *_: pytest.fail("decoded again"))
        assert small(root).pool("train").digest == first
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            small(root, image_size=9).pool("train")
    changed = small(root).class_folders("train")[0] / "0.png"
    Image.new("RGB", (9, 9), "red").save(changed)
    assert small(root).pool("train").digest != first


def test_nothing_is_read_before_it_is_needed(tmp_path: Path):
    source = small(tmp_path / "absent")
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'image-folder': root .*absent does not exist\. A folder with one folder",
    ):
        source.check("train")


def test_no_class_folders(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'image-folder': root .* has no class folders\. One folder of images for each",
    ):
        small(tmp_path).check("train")


def test_a_class_without_images(root: Path):
    (root / "empty").mkdir()
    (root / "empty" / "readme.txt").write_text("")
    with pytest.raises(
        fsl.DataError, match=r"empty: no images in this class folder\. At least one file"
    ):
        small(root, fractions=(1, 0, 0)).check("train")


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_an_unreadable_image(root: Path, content: bytes):
    (root / "class3" / "1.png").write_bytes(content)
    with pytest.raises(fsl.DataError, match=r"class3.1\.png: not a readable image"):
        small(root, fractions=(1, 0, 0)).check("train")


def test_a_truncated_image(root: Path):
    file = root / "class3" / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(fsl.DataError, match=r"big\.png: not a readable image .*truncated"):
        small(root, fractions=(1, 0, 0)).check("train")


def test_too_few_classes_and_too_few_images(root: Path):
    with pytest.raises(
        fsl.DataError,
        match=r"^episodes 'image-folder': split 'test' has 2 classes\. n_way: 3 needs at least 3$",
    ):
        small(root, n_way=3).check("test")
    with pytest.raises(
        fsl.DataError,
        match=r"split 'train', class 'class0' has 3 images\. n_shot: 2 and n_query: 2 need at least 4$",
    ):
        small(root, n_shot=2, fractions=(1, 0, 0)).check("train")


@pytest.mark.parametrize("fractions", [(0, 0, 0), (1.5, -0.5, 0)])
def test_fractions_that_share_nothing(root: Path, fractions: tuple[float, float, float]):
    with pytest.raises(ValueError, match=r"fractions: .*\. Three numbers >= 0, not all of them 0"):
        small(root, fractions=fractions)


def test_images_keep_their_colours(tmp_path: Path):
    paint(tmp_path / "a", 3)
    x = small(tmp_path, fractions=(1, 0, 0)).pool("train").images
    assert torch.equal(
        x[2].flatten(1).T.unique(dim=0), torch.tensor([[20, 97, 7]], dtype=torch.uint8)
    )


def test_images_are_sorted_by_file_name(root: Path):
    red = dict(small(root, fractions=(1, 0, 0)).pool("train").items())["class8"][:, 0, 0, 0]
    assert red.tolist() == [10 * i for i in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)]


def gradients(root: Path, low: float, high: float) -> None:
    """Ten classes of three float pictures, each with numbers from low to high."""
    for c in range(10):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(3):
            numbers = np.linspace(low, high, 64 + c + i, dtype=np.float32)[:64].reshape(8, 8)
            numbers[0, 0], numbers[-1, -1] = low, high
            Image.fromarray(numbers).save(root / f"class{c}" / f"{i}.tiff")


def test_pictures_of_other_numbers_need_a_range_and_follow_it(tmp_path: Path):
    root = tmp_path / "data"
    gradients(root, -80, 0)
    everything = {"fractions": (1, 0, 0), "channels": "gray"}
    with pytest.raises(fsl.DataError) as caught:
        small(root, **everything).check("train")
    assert str(caught.value) == (
        f"{root / 'class0' / '0.tiff'} and 29 more pictures: float numbers from -80 to 0, and "
        "nothing says which of them are black and white. The option `value_range: [-80, 0]` of "
        "image-folder, or pictures of 8 bits"
    )
    source = small(root, value_range=(-80, 0), **everything)
    file = root / "class3" / "1.tiff"
    expected = torch.from_numpy(
        np.rint((np.asarray(Image.open(file)).astype(float) + 80) / 80 * 255)
    )
    assert torch.equal(source.pool("train").images[10, 0], expected.to(torch.uint8))
    assert torch.equal(source.decode(file)[0], expected.to(torch.uint8))


def test_the_range_is_part_of_the_cache_key(tmp_path: Path):
    gradients(tmp_path / "data", -80, 0)
    digests = [
        small(tmp_path / "data", value_range=value_range, fractions=(1, 0, 0)).pool("train").digest
        for value_range in [(-80, 0), (-40, 0), (-80, 0), [-80.0, 0.0]]
    ]
    assert digests[0] == digests[2] == digests[3] != digests[1]
    assert len([*(tmp_path / "cache" / "decoded").glob("*.safetensors")]) == 2


def test_a_range_that_is_none(root: Path):
    with pytest.raises(ValueError, match=r"value_range: \[5, 5\]\. Two numbers, the smaller one"):
        small(root, value_range=(5, 5))


def test_all_damaged_pictures_are_told_at_once(root: Path):
    damaged = [root / f"class{c}" / "1.png" for c in (2, 5, 7)]
    for file in damaged:
        file.write_bytes(b"junk")
    with pytest.raises(fsl.DataError) as caught:
        small(root, fractions=(1, 0, 0)).check("train")
    found = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert found == [str(file) for file in damaged]

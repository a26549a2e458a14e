from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.builtin import image_folder
from fsl_core.builtin.image_folder import ImageFolder
from fsl_core.data import folders
from fsl_core.data.sharing import split_by_name, split_of
from fsl_core.reporting.data_report import DataReport


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))


def paint(folder: Path, n: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    """n images of one colour, which is different for every class and image."""
    folder.mkdir(parents=True)
    for i in range(n):
        colour = (10 * i, sum(os.fsencode(folder.name)) % 256, 7)
        Image.new("RGB", size, colour).convert(mode).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten classes with 3 to 12 images."""
    for i in range(10):
        paint(tmp_path / "data" / f"class{i}", 3 + i)
    return tmp_path / "data"


def small(root: Path, **options: object) -> ImageFolder:
    return ImageFolder(root, **{"n_way": 2, "n_shot": 1, "n_query": 2, "image_size": 8, **options})


SPLITS = ("train", "validation", "test")


def shares(root: Path, **options: object) -> dict[str, list[str]]:
    source = small(root, **options)
    return {split: source.class_names(split) for split in SPLITS}


def test_classes_are_shared_out_by_fractions(root: Path):
    splits = shares(root)
    assert [len(names) for names in splits.values()] == [6, 2, 2]
    assert sorted(chain(*splits.values())) == [f"class{i}" for i in range(10)]
    assert all(names == sorted(names) for names in splits.values())
    assert shares(root) == splits
    assert shares(root, split_seed=1) != splits
    halves = shares(root, fractions=(1, 0, 1))
    assert [len(names) for names in halves.values()] == [5, 0, 5]


def test_many_classes_come_near_to_the_fractions():
    names = [f"species {i}" for i in range(4000)]
    found = [split_by_name(name, (0.5, 0.3, 0.2), seed=3) for name in names]
    for split, share in zip(SPLITS, (0.5, 0.3, 0.2), strict=True):
        error = 5 * (share * (1 - share) / len(names)) ** 0.5
        assert found.count(split) / len(names) == pytest.approx(share, abs=error)


@pytest.mark.parametrize("none", [0, 1, 2])
def test_a_fraction_of_nothing_gets_no_class(none: int):
    fractions = [0.7, 0.7, 0.7]
    fractions[none] = 0
    found = {split_by_name(str(i), fractions, seed=0) for i in range(2000)}
    assert found == set(SPLITS) - {SPLITS[none]}


def test_a_class_stays_in_its_split_when_others_come_and_go(root: Path):
    before = shares(root)
    shutil.rmtree(root / before["train"][0])
    shutil.rmtree(root / before["test"][0])
    for name in ("another", "zebra", "class10"):
        paint(root / name, 3)
    after = shares(root)
    for split in SPLITS:
        assert set(after[split]) & set(chain(*before.values())) <= set(before[split])


def test_the_split_of_a_class_never_changes():
    """Another answer would put classes that runs were trained on into their test split."""
    names = ["c00", "otter", "café", "cafe\u0301", "中", os.fsdecode(b"\xff")]
    found = {
        seed: " ".join(split_by_name(name, (0.4, 0.3, 0.3), seed)[:2] for name in names)
        for seed in range(3)
    }
    assert found == {0: "tr tr tr tr tr va", 1: "tr va tr tr tr te", 2: "va te tr tr va tr"}
    assert split_by_name("café", (1, 1, 1), 5) == split_by_name("cafe\u0301", (1, 1, 1), 5)


def test_episodes(root: Path):
    source = small(root)
    batch = source.batch("train", range(5), seed=0)
    assert batch.support.x.shape == (5, 2, 3, 8, 8)
    assert source.task.input_shape == (3, 8, 8)
    pool = source.pool("train")
    assert dict(zip(pool.classes, pool.counts, strict=True)) == {
        name: 3 + int(name[-1]) for name in source.class_names("train")
    }


def test_gray(root: Path):
    assert small(root, channels="gray").batch("train", [0], 0).query.x.shape == (1, 4, 1, 8, 8)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("train", "val", "test"),
        ("Training", "VALID", "Testing"),
        ("meta-train", "meta-val", "meta-test"),
        ("metatrain", "metavalidation", "metatest"),
        ("meta_train", "dev", "TEST"),
    ],
)
def test_a_folder_for_each_split(tmp_path: Path, names: tuple[str, str, str]):
    for name in names:
        for c in "ab":
            paint(tmp_path / name / f"{name}-{c}", 3)
    source = small(tmp_path)
    for split, name in zip(SPLITS, names, strict=True):
        assert source.pool(split).classes == (f"{name}-a", f"{name}-b")


@pytest.mark.parametrize("name", ["metal", "trains", "tests", "meta", "evaluation", "trainer"])
def test_other_names_are_classes(name: str):
    assert split_of(name) is None


def test_a_split_without_its_folder(tmp_path: Path):
    paint(tmp_path / "Train" / "a", 3)
    paint(tmp_path / "Train" / "b", 3)
    paint(tmp_path / "test" / "a", 3)
    paint(tmp_path / "val", 3)
    message = (
        r"no folder with the classes of validation, only Train \(2 classes\), test \(1 classes\)\. "
        r"A folder of each split in use; for this one it may have the name validation, valid, val, "
        r"dev"
    )
    with pytest.raises(fsl.DataError, match=message):
        small(tmp_path).check("validation")


def test_two_folders_of_one_split(tmp_path: Path):
    for name in ("train", "Training", "test"):
        paint(tmp_path / name / "a", 3)
    with pytest.raises(
        fsl.DataError, match=r"folders 'Training' and 'train' both mean train\. One folder for each"
    ):
        small(tmp_path).class_names("test")


def test_one_folder_may_serve_two_splits(tmp_path: Path):
    for name in ("train", "test"):
        paint(tmp_path / name / f"{name}-a", 3)
    (tmp_path / "val").symlink_to("test")
    assert small(tmp_path).class_names("validation") == ["test-a"]


def test_what_lies_beside_the_folders_of_splits_is_not_forgotten(tmp_path: Path):
    for name in ("train", "test"):
        paint(tmp_path / name / f"{name}-a", 3)
    paint(tmp_path / "otter", 3)
    found = small(tmp_path).inspect("train").passed_over
    assert [(item.path.name, item.reason) for item in found] == [("otter", folders.BESIDE)]


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
    assert pool.items.shape == (22, 3, 8, 8)


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    first = small(root).pool("train").digest
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode_image", lambda *_: pytest.fail("decoded again"))
        assert small(root).pool("train").digest == first
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            small(root, image_size=9).pool("train")
    changed = root / small(root).class_names("train")[0] / "0.png"
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
        fsl.DataError,
        match=r"empty: no images in this class folder \(passed over: 1 not a picture by its end",
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


def test_damaged_images_are_told_together(root: Path):
    for i in (1, 2):
        (root / f"class{i}" / "1.png").write_text("junk")
    with pytest.raises(fsl.DataError) as caught:
        small(root, fractions=(1, 0, 0)).check("train")
    lines = str(caught.value).splitlines()
    assert [line.partition(": not a readable image (")[0] for line in lines[:2]] == [
        str(root / f"class{i}" / "1.png") for i in (1, 2)
    ]
    assert lines[2:] == [
        "2 of 75 pictures and folders cannot be read. "
        "Whole image files, or `skip_unreadable: true`, which leaves them out"
    ]


def test_damaged_images_may_be_left_out(root: Path, monkeypatch: pytest.MonkeyPatch):
    sound = small(root, fractions=(1, 0, 0)).inspect("train")
    damaged = [root / "class3" / "1.png", root / "class9" / "0.png"]
    for file in damaged:
        file.write_text("junk")
    found = small(root, fractions=(1, 0, 0), skip_unreadable=True).inspect("train")
    assert {
        name: n - found.classes[name]
        for name, n in sound.classes.items()
        if n != found.classes[name]
    } == {
        "class3": 1,
        "class9": 1,
    }
    assert [item.path for item in found.passed_over] == damaged
    assert {item.reason for item in found.passed_over} == {folders.UNREADABLE}
    assert found.digest != sound.digest
    for file in damaged:
        file.unlink()
    assert small(root, fractions=(1, 0, 0)).inspect("train").digest == found.digest


def test_which_images_are_damaged_is_found_out_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "class3" / "1.png").write_text("junk")
    first = small(root, fractions=(1, 0, 0), skip_unreadable=True).inspect("train")
    monkeypatch.setattr(image_folder, "decode_image", lambda *_: pytest.fail("decoded again"))
    again = small(root, fractions=(1, 0, 0), skip_unreadable=True).inspect("train")
    assert again == first


def test_a_class_of_damaged_images_alone_is_refused(root: Path):
    for file in (root / "class0").iterdir():
        file.write_text("junk")
    message = r"class0: no images in this class folder \(passed over: 3 unreadable\)\."
    with pytest.raises(fsl.DataError, match=message):
        small(root, fractions=(1, 0, 0), skip_unreadable=True).check("train")


def test_a_file_that_vanishes_between_listing_and_reading(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    find = folders.find_pictures

    def find_one_too_many(folder: Path) -> folders.Found:
        found = find(folder)
        return folders.Found([*found.paths, folder / "gone.png"], found.passed_over)

    monkeypatch.setattr(folders, "find_pictures", find_one_too_many)
    with pytest.raises(
        fsl.DataError, match=r"class0.gone\.png: No such file or directory"
    ) as caught:
        small(root, fractions=(1, 0, 0)).check("train")
    assert "10 of 85 pictures and folders cannot be read" in str(caught.value)


def test_an_unreadable_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in ("class2", "class5"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = (
        r"class2: Permission denied\n\S+class5: Permission denied\n2 pictures and folders cannot"
    )
    with pytest.raises(fsl.DataError, match=message):
        small(root, fractions=(1, 0, 0)).check("train")


def test_names_in_any_bytes(tmp_path: Path):
    names = ["plain", "cafe\u0301", os.fsdecode(b"caf\xe9"), "tab\there", "中"]
    for name in names:
        paint(tmp_path / "data" / name, 3)
    for _ in range(2):  # decoded, then from the cache
        pool = small(tmp_path / "data", fractions=(1, 0, 0)).pool("train")
        assert set(pool.classes) == {unicodedata.normalize("NFC", name) for name in names}
    assert len(pool.digest) == 32


def test_too_few_images(root: Path):
    with pytest.raises(
        fsl.DataError,
        match=r"split 'train', class 'class0' has 3 items\. n_shot: 2 and n_query: 2 need at least 4$",
    ):
        small(root, n_shot=2, fractions=(1, 0, 0)).check("train")


def test_too_few_classes_in_a_split(root: Path):
    """The message names the least split_seed that does; with it, the same is not refused."""
    with pytest.raises(fsl.DataError) as caught:
        small(root, n_way=3).check("test")
    message = str(caught.value)
    assert message.startswith(
        f"episodes 'image-folder': root {root}: fractions [0.6, 0.2, 0.2] and split_seed 0 share "
        "out its 10 classes as train 6, validation 2, test 2; n_way asks for test at least 3. "
        "`split_seed: "
    )
    assert message.endswith(
        "; or a folder for each split (train, validation, test) with the classes you choose"
    )
    seed = int(re.search(r"split_seed: (\d+)", message)[1])
    small(root, n_way=3, split_seed=seed).check("test")
    for less in range(seed):
        counts = {split: len(names) for split, names in shares(root, split_seed=less).items()}
        assert counts["train"] < 3 or counts["test"] < 3


def test_all_splits_in_use_are_looked_at_together(root: Path):
    source = small(root, n_way=3)
    task = source.task
    few = replace(task, n_way=2, output_dim=2)
    source.check_splits({"train": task, "test": few})
    with pytest.raises(
        fsl.DataError, match=r"n_way asks for validation at least 3, test at least 3"
    ) as caught:
        source.check_splits({"train": task, "validation": task, "test": task})
    seed = int(re.search(r"`split_seed: (\d+)", str(caught.value))[1])
    small(root, n_way=3, split_seed=seed).check_splits(dict.fromkeys(SPLITS, task))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_way": 6}, r"At least 12 classes, fewer ways, or `split_by: items`"),
        ({"fractions": (1, 1, 0)}, r"A fraction above 0 for test, or a folder for each split"),
        (
            {"fractions": (1, 0, 1e-9)},
            r"No split_seed below 10000 does: other fractions, more classes, `split_by: items`, whi",
        ),
    ],
)
def test_classes_that_no_split_seed_can_share_out(root: Path, options: dict, message: str):
    source = small(root, **options)
    with pytest.raises(fsl.DataError, match=message):
        source.check_splits({"train": source.task, "test": source.task})


@pytest.mark.parametrize("fractions", [(0, 0, 0), (1.5, -0.5, 0)])
def test_fractions_that_share_nothing(root: Path, fractions: tuple[float, float, float]):
    with pytest.raises(ValueError, match=r"fractions: .*\. Three numbers >= 0, not all of them 0"):
        small(root, fractions=fractions)


def test_images_keep_their_colours(tmp_path: Path):
    paint(tmp_path / "a", 3)
    x = small(tmp_path, fractions=(1, 0, 0)).pool("train").items
    assert torch.equal(
        x[2].flatten(1).T.unique(dim=0), torch.tensor([[20, 97, 7]], dtype=torch.uint8)
    )


def test_images_are_sorted_by_file_name(root: Path):
    red = dict(small(root, fractions=(1, 0, 0)).pool("train").by_class())["class8"][:, 0, 0, 0]
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
    assert torch.equal(source.pool("train").items[10, 0], expected.to(torch.uint8))
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


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """mini-ImageNet's layout: all pictures in one folder, their classes in lists."""
    paint(tmp_path / "mini" / "images", 24)
    for split, first in {"train": 0, "val": 12, "test": 18}.items():
        last = {"train": 12, "val": 18, "test": 24}[split]
        rows = [f"{i}.png,n{i // 3:04d}" for i in range(first, last)]
        (tmp_path / "mini" / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
    return tmp_path / "mini"


LISTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}


class TestLists:
    def test_of_mini_imagenet(self, flat: Path):
        source = small(flat, splits=LISTS)
        assert source.class_names("train") == ["n0000", "n0001", "n0002", "n0003"]
        assert source.class_names("test") == ["n0006", "n0007"]
        assert source.inspect("validation").classes == {"n0004": 3, "n0005": 3}
        assert source.inspect("test").files["n0007"] == [
            flat / "images" / f"{i}.png" for i in (21, 22, 23)
        ]
        # Its pictures are of the colour that their numbers say.
        reds = source.pool("test").items[:, 0, 0, 0].tolist()
        assert reds == [10 * i for i in range(18, 24)]
        source.check_splits({"train": source.task, "test": source.task})

    def test_of_a_recipe_are_found_in_root_or_by_a_whole_path(self, flat: Path, tmp_path: Path):
        shutil.move(flat / "train.csv", tmp_path / "elsewhere.csv")
        source = small(flat, splits=LISTS | {"train": str(tmp_path / "elsewhere.csv")})
        assert len(source.pool("train")) == 12

    def test_of_easyfsl(self, root: Path, tmp_path: Path):
        names, roots = ["seven", "eight"], ["class7", str(root / "class8")]
        record = {"class_names": names, "class_roots": roots}
        (tmp_path / "train.json").write_text(json.dumps(record))
        source = small(root, splits={"train": tmp_path / "train.json"})
        assert source.inspect("train").classes == {"seven": 10, "eight": 11}
        assert torch.equal(
            source.pool("train").items[:10],
            small(root, fractions=(1, 0, 0))
            .pool("train")
            .items[sum(3 + i for i in range(7)) :][:10],
        )

    def test_a_split_without_a_list(self, flat: Path):
        source = small(flat, splits={"train": "train.csv"})
        with pytest.raises(fsl.DataError, match="no list of test, only train. A list of each spl"):
            source.check("test")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            (
                "a.csv",
                "name,label\n1.png,x",
                r"a\.csv:1: columns name, label\. Columns filename an",
            ),
            ("a.csv", "", r"a\.csv:1: columns nothing\. Columns filename and label"),
            ("a.csv", "filename,label\n1.png,", r"a\.csv:2: no filename or no label\. Both in"),
            ("a.csv", "filename,label\n1.png", r"a\.csv:2: no filename or no label\. Both in"),
            (
                "a.csv",
                "filename,label\n99.png,x\n",
                r"a\.csv:2: 99\.png: no such picture\n.*: 1 pic",
            ),
            ("a.csv", b"filename,label\n\xff.png,x\n", r"a\.csv: not CSV in UTF-8"),
            ("a.txt", "", r"a\.txt: a list of pictures\. A file \.csv or \.json"),
            ("b.csv", None, r"b\.csv: No such file or directory\. A file that this user may read"),
            ("a.json", "[1]", r"a\.json: not a list of class folders\. An object"),
            ("a.json", '{"class_names": [1], "class_roots": ["a"]}', "not a list of class folders"),
            ("a.json", '{"class_names": ["a"], "class_roots": []}', "1 names and 0 folders"),
            ("a.json", '{"class_names": ["a"], "class_roots": ["z"]}', "class_roots: no folder z"),
            (
                "a.json",
                '{"class_names": ["a", "a"], "class_roots": ["z", "z"]}',
                r"class a is there twice\. Every class once",
            ),
        ],
    )
    def test_a_wrong_list_is_named_with_its_line(self, flat: Path, name, text, message):
        if text is not None:
            (flat / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(fsl.DataError, match=message):
            small(flat, splits={"train": name}).check("train")

    def test_many_absent_pictures_are_counted(self, flat: Path):
        rows = [f"absent{i}.png,x" for i in range(50)]
        (flat / "a.csv").write_text("\n".join(["filename,label", *rows]))
        with pytest.raises(fsl.DataError) as caught:
            small(flat, splits={"train": "a.csv"}).check("train")
        lines = str(caught.value).splitlines()
        assert len(lines) == 21
        assert "50 pictures are not there, of which 20 are named here" in lines[-1]

    def test_what_is_named_twice(self, flat: Path):
        """In one class it counts once; in two classes or splits the report shows it."""
        rows = ["0.png,a", "1.png,a", "0.png,a", "2.png,a", "0.png,b", "3.png,b", "4.png,b"]
        (flat / "a.csv").write_text("\n".join(["filename,label", *rows]))
        (flat / "b.csv").write_text("filename,label\n4.png,c\n5.png,c\n6.png,c\n")
        source = small(flat, splits={"train": "a.csv", "test": "b.csv"})
        found = source.inspect("train")
        assert found.classes == {"a": 3, "b": 3}
        assert [(item.path.name, item.reason) for item in found.passed_over] == [
            ("0.png", "named before in the same class")
        ]
        contents = {"train": found, "test": source.inspect("test")}
        wanted = dict.fromkeys(contents, source.task)
        report = DataReport(contents, wanted, dict.fromkeys(contents, 3), [])
        groups = [[(p.split, p.of_class, p.file.name) for p in g] for g in report.identical]
        assert sorted(groups) == [
            [("train", "a", "0.png"), ("train", "b", "0.png")],
            [("train", "b", "4.png"), ("test", "c", "4.png")],
        ]


def test_nested_classes(tmp_path: Path):
    for name in ("birds/heron", "birds/owl", "fish/trout", "fish/owl"):
        paint(tmp_path / "train" / name, 3)
    (tmp_path / "train" / "fish" / "notes.txt").write_text("no picture")
    shallow = small(tmp_path).inspect("train", digest=False)
    assert shallow.classes == {"birds": 6, "fish": 6}
    deep = small(tmp_path, depth=2)
    assert deep.class_names("train") == ["birds/heron", "birds/owl", "fish/owl", "fish/trout"]
    assert deep.pool("train").classes == tuple(deep.class_names("train"))
    assert [item.path.name for item in deep.inspect("train").passed_over] == ["notes.txt"]
    shared = small(tmp_path / "train", depth=2, fractions=(1, 0, 0))
    assert shared.class_names("train") == deep.class_names("train")
    with pytest.raises(fsl.DataError, match="has no class folders 3 folders deep"):
        small(tmp_path / "train", depth=3).class_names("train")


def test_small_classes_are_left_out_and_counted(root: Path, flat: Path):
    source = small(root, min_images=8, fractions=(1, 0, 0))
    assert source.class_names("train") == [f"class{i}" for i in range(5, 10)]
    left_out = source.inspect("train").passed_over
    assert folders.counted(left_out) == "5 class with fewer pictures than min_images"
    assert str(left_out[0]) == f"{root / 'class0'}: 3 of 8 pictures"
    rows = ["0.png,a", "1.png,a", "2.png,a", "3.png,b", "4.png,c"]
    (flat / "a.csv").write_text("\n".join(["filename,label", *rows]))
    found = small(flat, splits={"train": "a.csv"}, min_images=2).inspect("train")
    assert found.classes == {"a": 3}
    assert [item.path for item in found.passed_over] == [flat / "a.csv" / n for n in "bc"]


def test_pictures_of_a_class_are_shared_out(tmp_path: Path):
    for name in "abc":
        paint(tmp_path / "data" / name, 25)
    source = small(tmp_path / "data", split_by="items", fractions=(2, 1, 1))
    found = {split: source.inspect(split).files for split in SPLITS}
    assert all(list(files) == ["a", "b", "c"] for files in found.values())
    everything = [file for files in found.values() for own in files.values() for file in own]
    assert len(everything) == len(set(everything)) == 75
    source.check_splits(dict.fromkeys(SPLITS, source.task))
    before = {split: set(chain(*files.values())) for split, files in found.items()}
    shutil.rmtree(tmp_path / "data" / "a")
    (tmp_path / "data" / "b" / "3.png").unlink()
    again = small(tmp_path / "data", split_by="items", fractions=(2, 1, 1))
    for split in SPLITS:  # each picture stays where it was
        assert set(chain(*again.inspect(split).files.values())) <= before[split]

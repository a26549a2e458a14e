from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.builtin import omniglot
from fsl_core.builtin.omniglot import Omniglot
from fsl_core.data import omniglot as shared
from fsl_core.data.omniglot import EVALUATION, class_lists, with_rotations
from fsl_core.data.vision import torchvision

PROJECT = Path(fsl.__file__).parents[1]
TOY = {
    "train": ["Greek/character01", "Greek/character02"],
    "validation": ["Latin/character01"],
    "test": ["Keble/character01"],
}


class TestClassLists:
    @pytest.mark.parametrize(
        ("split", "sizes"),
        [
            ("vinyals", [1028, 172, 423]),
            ("learn2learn", [1100, 100, 423]),
            ("finn", [1100, 100, 423]),
        ],
    )
    def test_every_class_is_in_one_split(self, split: str, sizes: list[int]):
        lists = class_lists(split)
        assert list(lists) == ["train", "validation", "test"]
        assert [len(names) for names in lists.values()] == sizes
        everything = [*chain(*lists.values())]
        assert len(set(everything)) == 1623
        assert len({name.split("/")[0] for name in everything}) == 50
        assert sum(name.split("/")[0] in EVALUATION.split("/") for name in everything) == 659

    def test_the_learn2learn_split_is_pinned(self):
        """learn2learn's classes[:1100] after random.seed(42), random.shuffle(list(range(1623)))
        start with these numbers."""
        names = class_lists("learn2learn")
        order = sorted(
            chain(*names.values()),
            key=lambda n: (n.split("/")[0] in EVALUATION.split("/"), n),
        )
        assert order[0] == "Alphabet_of_the_Magi/character01"
        assert order[963] == "Tifinagh/character55"
        assert order[964] == "Angelic/character01"
        assert [order.index(name) for name in names["train"][:5]] == [1559, 1541, 1515, 1145, 981]
        digest = hashlib.md5("\n".join(names["test"]).encode()).hexdigest()
        assert digest == "d67eab85186d47869266ffcba78f3330"

    def test_no_latin_letter_is_trained_on(self):
        lists = class_lists("no-latin")
        assert [len(names) for names in lists.values()] == [1597, 26, 26]
        assert (
            lists["validation"]
            == lists["test"]
            == [f"Latin/character{i:02d}" for i in range(1, 27)]
        )
        assert len(set(lists["train"]) | set(lists["test"])) == 1623

    def test_the_finn_split_is_another_draw(self):
        learn2learn, finn = (set(class_lists(split)["test"]) for split in ("learn2learn", "finn"))
        # 423 of 1,623 twice: 110 in common on average, with a deviation of 8
        assert 80 < len(learn2learn & finn) < 140


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of the real images."""
    return tmp_path_factory.mktemp("decoded")


def test_rotations_are_counterclockwise_classes_of_their_own():
    image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)  # 0 1 / 2 3
    pool = with_rotations(
        fsl.LabelledPool.from_classes([("a", image), ("b", image + 4)]), (0, 90, 180, 270)
    )
    assert pool.classes[:4] == ("a/rot000", "a/rot090", "a/rot180", "a/rot270")
    assert pool.classes[5] == "b/rot090"
    assert pool.items[1, 0].tolist() == [[1, 3], [0, 2]]
    assert torch.equal(pool.items[5], pool.items[1] + 4)
    upright = Image.fromarray(image[0, 0].numpy()).rotate(90)  # PIL turns counterclockwise
    assert np.array_equal(np.asarray(upright), pool.items[1, 0])


class TestToyArchives:
    """Four classes in the layouts of the real files."""

    @pytest.fixture(autouse=True)
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("FSL_DATA", raising=False)
        monkeypatch.setattr(shared, "class_lists", lambda split: TOY)
        root = tmp_path / "data"
        root.mkdir()
        checksums = {}
        for part, classes in {
            "images_background": TOY["train"] + TOY["validation"],
            "images_evaluation": TOY["test"],
        }.items():
            with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
                for c, name in enumerate(classes):
                    for i in range(20):
                        ink = np.full((105, 105), 255, np.uint8)
                        ink[: 4 * i + 4, : 30 * c + 30] = 0
                        content = BytesIO()
                        Image.fromarray(ink).convert("1").save(content, "png")
                        archive.writestr(f"{part}/{name}/{c:04}_{i + 1:02}.png", content.getvalue())
            checksums[part] = (hashlib.md5((root / f"{part}.zip").read_bytes()).hexdigest(),)
        monkeypatch.setattr(shared, "CHECKSUMS", checksums)
        return root

    def test_pixels(self, root: Path):
        x = dict(Omniglot(root=root).pool("train").by_class())["Greek/character01/rot000"]
        assert x.shape == (20, 1, 28, 28)
        assert x[3, 0, 0, 0] == 255  # ink
        assert x[3, 0, -1, -1] == 0
        assert (x.float().mean((1, 2, 3)).diff() > 0).all()  # drawing 1 to 20 in order

    @pytest.mark.parametrize(
        ("rotations", "counts"),
        [
            ("train", (8, 1, 1)),
            ("all", (8, 4, 4)),
            ("none", (2, 1, 1)),
            ("per-episode", (2, 1, 1)),
        ],
        ids=["train", "all", "none", "per-episode"],
    )
    def test_where_rotations_are_classes(self, root: Path, rotations: str, counts: tuple[int, ...]):
        source = Omniglot(root=root, rotations=rotations)
        assert tuple(len(source.pool(split).classes) for split in TOY) == counts

    def test_an_episode_turns_its_classes(self, root: Path):
        """Each class of an episode by one angle, all four of them, in every split alike."""
        shape = fsl.TaskShape("classification", 2, 2, 3, (1, 28, 28), 2)
        upright = Omniglot(root=root, rotations="none").batch("train", range(100), 0, shape)
        source = Omniglot(root=root, rotations="per-episode")
        turned = source.batch("train", range(100), 0, shape)
        angles = []
        for plain, found in zip(upright.unbatch(), turned.unbatch(), strict=True):
            assert torch.equal(plain.support.y, found.support.y)
            for label in (0, 1):
                before, after = (
                    torch.cat([part.x[part.y == label] for part in episode[:2]])
                    for episode in (plain, found)
                )
                fits = [k for k in range(4) if torch.equal(before.rot90(k, (-2, -1)), after)]
                angles += fits[:1]  # a square of ink has two
                assert fits
        assert min(map(angles.count, range(4))) > 30
        alone = source.batch("train", [7], 0, shape)
        assert torch.equal(alone.query.x[0], turned.query.x[7])
        more = source.batch("train", [7], 0, replace(shape, n_query=9))
        assert torch.equal(more.support.x, alone.support.x)
        varying = Omniglot(root=root, rotations="per-episode", n_way=2, n_shot=(1, 4), n_query=3)
        for group in varying.groups("train", range(20), 0):
            for place, found in zip(group.places, group.episodes.unbatch(), strict=True):
                assert torch.equal(found.support.x[0], turned.support.x[place, 0])
        for split, seed in (("test", 0), ("train", 1)):
            other = shared.turned_classes(upright, split, seed)
            assert not torch.equal(other.query.x, turned.query.x)

    def test_the_nearest_pixels_are_what_pil_gives_for_one_bit(self, root: Path):
        """Whatever it is asked for, as MAML's script asks for Lanczos."""
        found = dict(
            Omniglot(root=root, rotations="none", resize="nearest").pool("train").by_class()
        )
        with zipfile.ZipFile(root / "images_background.zip") as archive:
            name = "images_background/Greek/character02/0001_08.png"
            drawing = Image.open(BytesIO(archive.read(name)))
        assert drawing.mode == "1"
        pixels = np.asarray(drawing.resize((28, 28), Image.Resampling.LANCZOS))
        assert np.array_equal(found["Greek/character02/rot000"][7, 0], 255 * ~pixels)

    def test_layouts_give_the_same_images(self, root: Path):
        expected = Omniglot(root=root).pool("train").digest
        nested = root / "nested"
        shutil.copytree(root, nested / "omniglot-py", ignore=shutil.ignore_patterns("nested"))
        assert Omniglot(root=nested).pool("train").digest == expected
        for archive in (nested / "omniglot-py").glob("*.zip"):
            zipfile.ZipFile(archive).extractall(nested / "omniglot-py")
            archive.unlink()
        assert Omniglot(root=nested).pool("train").digest == expected

    def test_root_from_the_environment(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FSL_DATA", str(root))
        assert Omniglot().fetch() == [
            root / "images_background.zip",
            root / "images_evaluation.zip",
        ]

    def test_images_are_decoded_once(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        first = Omniglot(root=root).pool("test").digest
        monkeypatch.setattr(omniglot, "_decode", lambda *_: pytest.fail("decoded again"))
        assert Omniglot(root=root).pool("test").digest == first
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            Omniglot(root=root, image_size=32).pool("test")
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            Omniglot(root=root, resize="nearest").pool("test")

    def test_a_wrong_checksum(self, root: Path):
        archive = root / "images_evaluation.zip"
        right = hashlib.md5(archive.read_bytes()).hexdigest()
        archive.write_bytes(archive.read_bytes()[:-10])
        wrong = hashlib.md5(archive.read_bytes()).hexdigest()
        with pytest.raises(
            fsl.DataError,
            match=rf"images_evaluation\.zip: md5 {wrong}\. {right}: delete the file and fetch it again",
        ):
            Omniglot(root=root).check("train")

    def test_an_unpacked_folder_with_a_file_missing_or_damaged(self, root: Path):
        for archive in root.glob("*.zip"):
            zipfile.ZipFile(archive).extractall(root)
            archive.unlink()
        file = root / "images_background" / "Latin" / "character01" / "0002_07.png"
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(
            fsl.DataError, match=r"0002_07\.png: not a readable image .* Unpack the zip file"
        ):
            Omniglot(root=root).check("train")
        file.unlink()
        with pytest.raises(
            fsl.DataError, match=r"19 images of Latin/character01\. 20: unpack the zip files"
        ):
            Omniglot(root=root).check("train")

    def test_an_unpacked_folder_with_more_than_its_images(self, root: Path):
        """Copies of an editor, of macOS and of a storage server are no drawings."""
        expected = Omniglot(root=root).pool("train").digest
        for archive in root.glob("*.zip"):
            zipfile.ZipFile(archive).extractall(root)
            archive.unlink()
        drawing = root / "images_background" / "Latin" / "character01" / "0002_07.png"
        for name in ("._0002_07.png", ".ipynb_checkpoints/0002_07.png", "@eaDir/0002_07.png"):
            (drawing.parent / name).parent.mkdir(exist_ok=True)
            (drawing.parent / name).write_bytes(b"")
        (drawing.parents[1] / "__MACOSX").mkdir()
        (drawing.parents[1] / "__MACOSX" / "0002_07.png").write_bytes(b"")
        assert Omniglot(root=root).pool("train").digest == expected

    def test_absent_and_not_to_be_downloaded(self, root: Path):
        (root / "images_evaluation.zip").unlink()
        found = r"^episodes 'omniglot': no images_evaluation\.zip in .*data or .*omniglot-py \(download: false\)\. "
        fit = r"Both zip files of .*`-s episodes\.root=DIR` or FSL_DATA$"
        with pytest.raises(fsl.DataError, match=found + fit):
            Omniglot(root=root, download=False).check("train")

    def test_absent_and_without_a_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def unreachable(*_, **__):
            raise OSError("network is unreachable")

        monkeypatch.setattr("urllib.request.urlopen", unreachable)
        with pytest.raises(
            fsl.DataError,
            match=r"no images_background\.zip and no images_evaluation\.zip in .*network is unreachable",
        ):
            Omniglot().check("train")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    def test_absent_and_downloaded(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """From torchvision's addresses, answered from the toy archives."""

        def served(request, **_):
            url = getattr(request, "full_url", request)
            response = BytesIO((root / url.rpartition("/")[2]).read_bytes())
            response.url, response.length = url, len(response.getvalue())
            return response

        monkeypatch.setattr("urllib.request.urlopen", served)
        source = Omniglot()
        assert len(source.pool("train").classes) == 8
        assert (
            source.fetch()[0]
            == tmp_path / "cache" / "datasets" / "omniglot-py" / "images_background.zip"
        )


@pytest.mark.slow
class TestRealImages:
    @pytest.fixture
    def root(self) -> Path:
        for folder in (os.environ.get("FSL_DATA"), PROJECT.parent / "shared" / "data"):
            if folder and (Path(folder) / "omniglot-py").is_dir():
                return Path(folder)
        pytest.skip("no folder omniglot-py in FSL_DATA or ../shared/data")

    @pytest.fixture
    def make(
        self, root: Path, decoded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Omniglot]:
        monkeypatch.setenv("FSL_CACHE", str(decoded))
        return lambda **options: Omniglot(root=root, download=False, **options)

    @pytest.mark.parametrize(
        ("split", "rotations", "counts"),
        [
            ("vinyals", "train", [4112, 172, 423]),
            ("vinyals", "all", [4112, 688, 1692]),
            ("learn2learn", "none", [1100, 100, 423]),
            ("finn", "per-episode", [1100, 100, 423]),
        ],
    )
    def test_counts(self, make, split: str, rotations: str, counts: list[int]):
        source = make(split=split, rotations=rotations)
        pools = [source.pool(part) for part in ("train", "validation", "test")]
        assert [len(pool.classes) for pool in pools] == counts
        assert all(set(pool.counts) == {20} for pool in pools)

    def test_classes_are_those_of_the_published_lists(self, make, root: Path):
        folder = root / "splits" / "omniglot-vinyals"
        if not folder.is_dir():
            pytest.skip("no published split lists beside the images")
        source = make(rotations="all")
        for split, file in {"train": "train", "validation": "val", "test": "test"}.items():
            assert set(source.pool(split).classes) == set(
                (folder / f"{file}.txt").read_text().split()
            )

    def test_pixels_are_those_of_torchvision_and_pil(self, make, root: Path, tmp_path: Path):
        """One image through torchvision's Omniglot class, resized as learn2learn does."""
        name = "images_background/Korean/character07"
        with zipfile.ZipFile(root / "omniglot-py" / "images_background.zip") as archive:
            files = sorted(
                f for f in archive.namelist() if f.startswith(f"{name}/") and f.endswith(".png")
            )
            archive.extract(files[4], tmp_path / "omniglot-py")
        dataset = torchvision().datasets.Omniglot
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "_check_integrity", lambda self: True)
            image, _ = dataset(tmp_path)[0]
        expected = 255 - np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS))
        split = next(
            s for s, names in class_lists("vinyals").items() if "Korean/character07" in names
        )
        found = dict(make(rotations="none").pool(split).by_class())["Korean/character07/rot000"][
            4, 0
        ]
        assert np.array_equal(found, expected)
        assert 0 < (found > 127).float().mean() < 0.25  # ink is 1, and little of the page

    def test_too_many_ways_and_images(self, make):
        source = make(n_way=500, n_shot=5, n_query=16)
        with pytest.raises(
            fsl.DataError,
            match=r"^episodes 'omniglot': split 'test' has 423 classes\. n_way: 500 needs at least 500$",
        ):
            source.check("test")
        with pytest.raises(
            fsl.DataError, match="has 20 items. n_shot: 5 and n_query: 16 need at least 21"
        ):
            source.check("train")

"""Every data set, from files in the layout of the published ones, against learn2learn's own
class."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.builtin.omniglot import Omniglot
from fsl_core.data import omniglot
from fsl_core.data.vision import torchvision
from fsl_core.hooks.loader import load
from fsl_learn2learn import datasets
from fsl_learn2learn.datasets import SOURCES
from fsl_learn2learn.episodes import splits_of

RANDOM = np.random.default_rng(0)
TOY = {
    "train": ["Greek/character01", "Greek/character02"],
    "validation": ["Latin/character01"],
    "test": ["Keble/character01"],
}


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


def save(file: Path, width: int = 24, height: int = 16) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(file)


def pickled(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))


def mini_imagenet(root: Path) -> None:
    rows = {f"n0{c}": list(range(c, 12, 3)) for c in range(3)}
    pickled(
        root / "mini-imagenet-cache-test.pkl",
        {"image_data": noise(12, 84, 84, 3), "class_dict": rows},
    )


def tiered_imagenet(root: Path) -> None:
    def png() -> np.ndarray:
        content = BytesIO()
        Image.fromarray(noise(84, 84, 3)).save(content, "png")
        return np.frombuffer(content.getvalue(), np.uint8)

    pickled(root / "tiered-imagenet" / "test_images_png.pkl", [png() for _ in range(12)])
    pickled(root / "tiered-imagenet" / "test_labels.pkl", {"label_specific": np.arange(12) % 3})


def cifar_fs(root: Path) -> None:
    base = root / "cifarfs" / "cifar100"
    classes = {"train": ["apple"], "val": ["bee"], "test": ["cloud", "crab", "cup"]}
    for split, names in classes.items():
        (base / "splits" / "bertinetto").mkdir(parents=True, exist_ok=True)
        (base / "splits" / "bertinetto" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            for i in range(4):
                save(base / "data" / name / f"{i}.png", 32, 32)


def fc100(root: Path) -> None:
    pickled(root / "FC100_test.pickle", {"data": noise(12, 32, 32, 3), "labels": [7, 8, 9] * 4})


def cub(root: Path) -> None:
    for name in splits_of("cu_birds200")["test"]:
        for i in range(4):
            save(root / "cubirds200" / "CUB_200_2011" / "images" / name / f"{name[4:]}_{i}.jpg")


def aircraft(root: Path) -> None:
    data, index = root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data", []
    for c, name in enumerate(splits_of("fgvc_aircraft")["test"]):
        for i in range(4):
            save(data / "images" / f"{c:03d}{i}.jpg")
            index.append((f"{c:03d}{i}", name))
    pickled(data / "labels.pkl", [*index, ("9999", "A318")])
    (data / "images_box.txt").write_text("".join(f"{image} 2 3 12 13\n" for image, _ in index))


def textures(root: Path) -> None:
    for name in splits_of("describable_textures")["test"]:
        for i in range(4):
            save(root / "describable_textures" / "dtd" / "images" / name / f"{name}_{i}.jpg")


def quickdraw(root: Path) -> None:
    (root / "quickdraw").mkdir()
    for names in splits_of("quickdraw").values():
        for name in names:
            np.save(root / "quickdraw" / f"{name}.npy", noise(4, 784))


def fungi(root: Path) -> None:
    known, images, marks = [int(name[:4]) for name in splits_of("fgvc_fungi")["test"][:6]], [], []
    for i in range(24):
        file = f"images/{i}.jpg"
        save(root / "fgvc_fungi" / file)
        images.append({"id": i, "file_name": file})
        marks.append({"image_id": i, "category_id": known[i % 6]})
    for part, rows in (("train", slice(0, 20)), ("val", slice(20, None))):
        (root / "fgvc_fungi" / f"{part}.json").write_text(
            json.dumps({"images": images[rows], "annotations": marks[rows]})
        )


def flowers(root: Path) -> None:
    labels = [number for number in splits_of("vgg_flowers")["test"] for _ in range(4)]
    for i in range(len(labels)):
        save(root / "vgg_flower102" / "jpg" / f"image_{i + 1:05}.jpg")
    scipy.io.savemat(root / "vgg_flower102" / "imagelabels.mat", {"labels": np.array([labels])})


TOYS = {
    "mini-imagenet": mini_imagenet,
    "tiered-imagenet": tiered_imagenet,
    "l2l-cifar-fs": cifar_fs,
    "l2l-fc100": fc100,
    "l2l-cub": cub,
    "l2l-aircraft": aircraft,
    "l2l-dtd": textures,
    "l2l-quickdraw": quickdraw,
    "l2l-fungi": fungi,
    "l2l-vgg-flowers": flowers,
}
CLASSES = {source.name: source for source in SOURCES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_every_data_set_has_a_toy():
    assert (
        set(TOYS) | {"l2l-omniglot"}
        == set(CLASSES)
        == {n for n in load().catalogue.names("episodes") if load_is_ours(n)}
    )


def load_is_ours(name: str) -> bool:
    return load().catalogue.get("episodes", name).origin.startswith("fsl-learn2learn")


@pytest.mark.parametrize("name", TOYS)
def test_pictures_are_those_of_learn2learn(name: str, root: Path, l2l):
    """As sets for each class; of pictures of another size core's resizing is applied to
    learn2learn's."""
    TOYS[name](root)
    before = sorted(root.rglob("*"))
    source = CLASSES[name](n_way=3, n_shot=1, n_query=3, root=root)
    pool = source.pool("test")
    assert sorted(root.rglob("*")) == before  # no index or copy is left there
    assert pool.items.shape[1:] == source.task.input_shape
    theirs = getattr(l2l.vision.datasets, source.dataset)(str(root), mode="test")
    expected: dict[int, list[bytes]] = {}
    for i in range(len(theirs)):
        picture, label = theirs[i]
        if isinstance(picture, torch.Tensor):
            picture = picture.permute(1, 2, 0).to(torch.uint8).numpy()
        expected.setdefault(int(label), []).append(
            source.pixels(_openable(picture, root)).numpy().tobytes()
        )
    found = {
        name: sorted(image.numpy().tobytes() for image in images)
        for name, images in pool.by_class()
    }
    assert sorted(found.values()) == sorted(sorted(images) for images in expected.values())
    episode = source.batch("test", [0, 1], seed=0)
    assert episode.support.x.shape == (2, 3, *source.task.input_shape)
    assert 0 <= episode.query.x.min() < episode.query.x.max() <= 1


def _openable(picture, root: Path):
    """A picture as the source's `pixels` takes it: DTD's takes a file."""
    if (
        not isinstance(picture, Image.Image)
        or picture.size != (24, 16)
        or not (root / "describable_textures").is_dir()
    ):
        return picture
    picture.save(root / "one.png")
    return root / "one.png"


@pytest.mark.parametrize("name", TOYS)
def test_absent(name: str, root: Path):
    source = CLASSES[name](root=root)
    first = source.needs("train")[0]
    message = rf"^episodes '{name}': no {first}.* in {root} \(download: false\)\. What learn2learn keeps there, in a folder "
    with pytest.raises(
        fsl.DataError, match=message + r"named by .*; or `-s episodes\.download=true`, \d.* [GM]B"
    ):
        source.check("train")


def test_native_pixels_are_kept(root: Path):
    mini_imagenet(root)
    data = pickle.loads((root / "mini-imagenet-cache-test.pkl").read_bytes())
    pool = datasets.MiniImagenet(root=root).pool("test")
    assert pool.classes == ("n00", "n01", "n02")
    assert pool.counts == (4, 4, 4)
    theirs = data["image_data"].transpose(0, 3, 1, 2)
    assert {image.numpy().tobytes() for image in pool.items[:4]} == {
        theirs[i].tobytes() for i in data["class_dict"]["n00"]
    }
    assert datasets.MiniImagenet(root=root, image_size=32).pool("test").items.shape == (
        12,
        3,
        32,
        32,
    )


def test_decoded_once_until_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch):
    fc100(root)
    first = datasets.Fc100(root=root).pool("test").digest
    with monkeypatch.context() as patch:
        patch.setattr(datasets.Fc100, "_decode", lambda *_: pytest.fail("decoded again"))
        assert datasets.Fc100(root=root).pool("test").digest == first
    fc100(root)
    assert datasets.Fc100(root=root).pool("test").digest != first


def test_crop_is_the_bounding_box(root: Path):
    aircraft(root)
    whole, cropped = (
        datasets.Aircraft(root=root, crop=crop, image_size=10).pool("test")
        for crop in (False, True)
    )
    assert whole.digest != cropped.digest
    images = root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data" / "images"
    expected = {
        np.asarray(Image.open(images / f"000{i}.jpg"))[3:13, 2:12].transpose(2, 0, 1).tobytes()
        for i in range(4)
    }
    name = splits_of("fgvc_aircraft")["test"][0]
    assert {image.numpy().tobytes() for image in dict(cropped.by_class())[name]} == expected


def test_quickdraw_keeps_the_first_drawings(root: Path):
    quickdraw(root)
    pool = datasets.QuickDraw(root=root, per_class=2).pool("validation")
    assert set(pool.counts) == {2}
    drawings = np.load(root / "quickdraw" / f"{pool.classes[0]}.npy")[:2].reshape(2, 1, 28, 28)
    assert {image.tobytes() for image in drawings} == {
        image.numpy().tobytes() for image in pool.items[:2]
    }


def test_a_damaged_file(root: Path):
    mini_imagenet(root)
    file = root / "mini-imagenet-cache-test.pkl"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        fsl.DataError,
        match=r"mini-imagenet-cache-test.pkl in .*: learn2learn cannot read it \(.*The files as",
    ):
        datasets.MiniImagenet(root=root).check("test")


class Planted:
    """A pickle of it runs what a stranger wrote."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("source", "name", "split"),
    [
        (datasets.MiniImagenet, "mini-imagenet-cache-test.pkl", "test"),
        (datasets.TieredImagenet, "tiered-imagenet/test_labels.pkl", "test"),
        (datasets.Fc100, "FC100_train.pickle", "train"),
        (datasets.Aircraft, "fgvc_aircraft/fgvc-aircraft-2013b/data/labels.pkl", "test"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("download", [False, True])
def test_a_pickle_that_would_run_code(
    root: Path,
    source: type,
    name: str,
    split: str,
    download: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    """Also where the other files of the data set are there, or are to be downloaded."""
    monkeypatch.chdir(root)
    tiered_imagenet(root)
    aircraft(root)
    if download:
        shutil.rmtree(root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data" / "images")
        (root / "tiered-imagenet" / "test_images_png.pkl").unlink()
    pickled(root / name, {"data": [Planted()], "labels": []})
    with pytest.raises(fsl.DataError) as raised:
        source(root=root, download=download).check(split)
    assert (
        f"episodes {source.name!r}: {root / name}: a pickle that names pathlib.Path.touch, so that "
        "reading it would run code. The file as published" in str(raised.value)
    )
    assert not (root / "ran").exists()


def test_pickles_of_older_versions_are_read(root: Path):
    """Protocol 2 names more to make an array of, and so do numbers of NumPy."""
    content = {"data": noise(12, 32, 32, 3), "labels": [*np.array([7, 8, 9] * 4)]}
    (root / "FC100_test.pickle").write_bytes(pickle.dumps(content, protocol=2))
    assert datasets.Fc100(root=root).pool("test").counts == (4, 4, 4)


def test_a_root_that_is_no_folder(tmp_path: Path):
    with pytest.raises(
        fsl.DataError, match=r"^episodes 'l2l-fc100': .*no such folder.*, with FC100_train\.pickle$"
    ):
        datasets.Fc100(root=tmp_path / "nowhere").check("train")


def test_a_download_that_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("requests.get", unreachable)
    monkeypatch.setattr("requests.Session.get", unreachable)
    with pytest.raises(
        fsl.DataError,
        match=r"\(download failed: network is unreachable\)\. .*; or a network connection",
    ):
        datasets.Fc100(root=root, download=True).check("train")
    assert "Downloading FC100" not in capsys.readouterr().out


def test_a_download_that_fails_is_tried_and_told_of_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    tried = []

    def unreachable(*_, **__):
        tried.append(True)
        raise OSError("network is unreachable")

    monkeypatch.setattr("requests.get", unreachable)
    monkeypatch.setattr("requests.Session.get", unreachable)
    source, lines, attempts = datasets.Fc100(root=root, download=True), set(), set()
    for split in ("train", "validation", "test"):
        with pytest.raises(fsl.DataError, match="network is unreachable") as caught:
            source.check(split)
        lines.add(str(caught.value))
        attempts.add(len(tried))  # learn2learn itself tries two addresses
    assert len(attempts) == len(lines) == 1


def test_a_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Through learn2learn's own, its address answered from a toy archive."""
    fc100(tmp_path)
    for part in ("train", "val"):
        (tmp_path / f"FC100_{part}.pickle").write_bytes(
            (tmp_path / "FC100_test.pickle").read_bytes()
        )
    with zipfile.ZipFile(tmp_path / "fc100.zip", "w") as archive:
        for part in ("train", "val", "test"):
            archive.write(tmp_path / f"FC100_{part}.pickle", f"FC100_{part}.pickle")

    class Answer:
        def iter_content(self, chunk_size):
            yield (tmp_path / "fc100.zip").read_bytes()

    monkeypatch.setattr("requests.get", lambda *_, **__: Answer())
    assert datasets.Fc100(n_way=3, n_query=3, root=root, download=True).pool("test").classes == (
        "007",
        "008",
        "009",
    )


class TestOmniglot:
    """Core's episodes, ours and learn2learn's own data set, of four characters in the layout of the
    published files."""

    @pytest.fixture(autouse=True)
    def root(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(omniglot, "class_lists", lambda split: TOY)
        (root / "omniglot-py").mkdir()
        md5 = {}
        for part, names in {
            "images_background": TOY["train"] + TOY["validation"],
            "images_evaluation": TOY["test"],
        }.items():
            with zipfile.ZipFile(root / "omniglot-py" / f"{part}.zip", "w") as archive:
                for c, name in enumerate(names):
                    for i in range(20):
                        content = BytesIO()
                        Image.fromarray(noise(105, 105)).convert("1").save(content, "png")
                        archive.writestr(f"{part}/{name}/{c:04}_{i + 1:02}.png", content.getvalue())
            md5[part] = hashlib.md5((root / "omniglot-py" / f"{part}.zip").read_bytes()).hexdigest()
        monkeypatch.setattr(
            omniglot, "CHECKSUMS", {part: (digest,) for part, digest in md5.items()}
        )
        return root

    @pytest.mark.parametrize("rotations", ["train", "all", "none"])
    def test_core_and_plugin_are_equal(self, rotations: str, root: Path):
        ours = datasets.FullOmniglot(root=root, rotations=rotations)
        core = Omniglot(root=root, rotations=rotations, split="learn2learn")
        for split in fsl.data.source.SPLITS:
            assert ours.pool(split).classes == core.pool(split).classes
            assert ours.pool(split).digest == core.pool(split).digest

    def test_core_is_learn2learns_meta_dataset(
        self, root: Path, tmp_path: Path, l2l, monkeypatch: pytest.MonkeyPatch
    ):
        md5 = {part: known[0] for part, known in omniglot.CHECKSUMS.items()}
        monkeypatch.setattr(torchvision().datasets.Omniglot, "zips_md5", md5)
        compare_with_meta_dataset(
            l2l, root / "omniglot-py", tmp_path, Omniglot(root=root, rotations="none")
        )

    def test_another_file_is_refused(self, root: Path):
        with zipfile.ZipFile(root / "omniglot-py" / "images_evaluation.zip", "a") as archive:
            archive.writestr("more", "")
        with pytest.raises(
            fsl.DataError,
            match=r"images_evaluation\.zip: md5 [0-9a-f]{32}\. [0-9a-f]{32}: delete the file and fetch it again$",
        ):
            datasets.FullOmniglot(root=root).check("train")


def compare_with_meta_dataset(l2l, archives: Path, scratch: Path, core: Omniglot) -> None:
    """learn2learn's FullOmniglot in its MetaDataset, transformed as its benchmark does: the same
    classes, the same pixels."""
    (scratch / "l2l" / "omniglot-py").mkdir(parents=True)
    for archive in archives.glob("*.zip"):
        (scratch / "l2l" / "omniglot-py" / archive.name).symlink_to(archive)
        zipfile.ZipFile(archive).extractall(scratch / "l2l" / "omniglot-py")
    tv = torchvision().transforms
    to_image = tv.Compose(
        [
            tv.Resize(28, interpolation=tv.InterpolationMode.LANCZOS),
            tv.ToTensor(),
            lambda x: 1.0 - x,
        ],
    )
    data = l2l.vision.datasets.FullOmniglot(str(scratch / "l2l"), transform=to_image)
    meta = l2l.data.MetaDataset(data)
    names = [f"{name}/rot000" for part in data.dataset.datasets for name in part._characters]
    expected = {
        names[label]: sorted(
            (data[i][0] * 255).round().to(torch.uint8).numpy().tobytes() for i in rows
        )
        for label, rows in meta.labels_to_indices.items()
    }
    pools = [core.pool(split) for split in ("train", "validation", "test")]
    found = {
        name: sorted(image.numpy().tobytes() for image in images)
        for pool in pools
        for name, images in pool.by_class()
    }
    assert len(meta.labels) == len(found)
    assert found == expected

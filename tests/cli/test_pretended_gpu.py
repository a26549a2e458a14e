"""Every command that computes, on a GPU that this machine does not have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsl_core.testing.pretended import NAME, can_be_pretended, pretended_gpu

pytestmark = pytest.mark.skipif(
    not can_be_pretended(), reason="this torch takes no backend written in Python"
)

PICTURES = """
seed: 0
episodes: {name: image-folder, root: pictures, image_size: 8, n_way: 2, n_shot: 2, n_query: 2}
backbone: {name: conv4, channels: 2, blocks: 2}
adapter: {name: nearest-centroid}
outer: {steps: 2, meta_batch_size: 2}
evaluate: {episodes: 3}
"""


@pytest.fixture
def gpu():
    with pretended_gpu():
        yield f"--device={NAME}"


@pytest.fixture
def pictures(tmp_path: Path) -> None:
    for part in ("pictures/train", "pictures/validation", "pictures/test"):
        for c, colour in enumerate(((200, 60, 90), (20, 60, 90), (90, 200, 20))):
            for i in range(4):
                noise = np.random.default_rng(10 * c + i).integers(-9, 9, (8, 8, 3))
                file = tmp_path / part / f"c{c}" / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def classes(table: str) -> list[str]:
    """File, right and predicted class of each row; probabilities differ in their last digit."""
    return [",".join(row.split(",")[:3]) for row in table.splitlines()]


@pytest.mark.parametrize("mode", ["loop", "vmap", "auto"])
def test_a_run_gives_the_numbers_of_the_cpu(mode, call, toy_recipe, tmp_path, monkeypatch, gpu):
    monkeypatch.chdir(tmp_path)
    options = ["-s", f"execution.mode={mode}"]
    ended = call("run", toy_recipe, "--out", "there", gpu, *options)
    assert ended.code == 0, ended.err
    assert call("run", toy_recipe, "--out", "here", "--device", "cpu", *options).code == 0
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), rel=1e-3)
    found, expected = (
        json.loads((tmp_path / name / "result.json").read_text("utf-8"))
        for name in ("there", "here")
    )
    assert found["episode_set"] == expected["episode_set"]
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.05)


def test_what_follows_a_run(call, toy_recipe, tmp_path, monkeypatch, gpu):
    monkeypatch.chdir(tmp_path)
    assert call("run", toy_recipe, "--out", "r", gpu, "-s", "outer.steps=6").code == 0
    assert call("resume", "r", "--steps", "8", gpu).code == 0
    assert call("eval", "r", gpu, "--json").code == 0
    assert call("eval", "r", "--device", "cpu", "--json").code == 0


@pytest.mark.usefixtures("pictures")
def test_pictures(in_process, tmp_path, monkeypatch, gpu):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PICTURES, "utf-8")
    ended = in_process("run", "p.yaml", "--out", "r", gpu)
    assert ended.code == 0, ended.err
    options = ["--support", "pictures/train", "--query", "pictures/test"]
    there = in_process("predict", "r", *options, "--html", "p.html", "--save", "p", gpu)
    here = in_process("predict", "r", *options, "--device", "cpu")
    assert (there.code, here.code) == (0, 0), there.err + here.err
    assert classes(there.out) == classes(here.out)
    again = in_process("predict", "p", "--query", "pictures/test", gpu)
    assert classes(again.out) == classes(here.out)


def test_tensors_of_two_devices_do_not_mix(gpu):
    x = torch.ones(3, device=NAME)
    for mixed in (lambda: x + torch.ones(3), lambda: torch.stack([x, torch.ones(3)])):
        with pytest.raises(RuntimeError, match="same device, but found at least two devices"):
            mixed()
    assert (x * torch.tensor(2.0)).device.type == NAME  # a number may come from anywhere
    assert x[torch.tensor([0, 2])].tolist() == [1, 1]
    assert torch.tensor([1.5], device=NAME).cpu().numpy() == [1.5]
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    y = torch.zeros(3)
    y.copy_(x)
    assert y.tolist() == [1, 1, 1]


def test_checkpointing_elsewhere_goes_on():
    """torch asks every backend of a process for its types, whichever computes."""
    with pretended_gpu():
        pass
    x = torch.ones(2, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.cos(x))


def test_derivatives_are_there(gpu):
    x = torch.arange(3.0, device=NAME, requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [0, 6, 12]
    rows = torch.func.vmap(torch.func.grad(lambda x: x**2))(x.detach())
    assert rows.tolist() == [0, 2, 4]
    assert rows.device.type == NAME

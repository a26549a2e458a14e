"""`fsl embed`, `fsl.embed_files`, and the episodes `arrays` that read what was written."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fsl_core as core
from tests.parts import bars
from tests.parts.command_line import Call, Ended

PLUGIN = """
import torch
import fsl_core as fsl


class Patches(fsl.PretrainedBackbone):
    name = "patches"

    def __init__(self, task: fsl.TaskShape, frozen: bool, width: int = 8):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 5, 3), torch.nn.ReLU())
        wanted = fsl.Preprocessing(24, [0.5] * 3, [0.25] * 3)
        super().__init__(task.input_shape, net, wanted, frozen=frozen)


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Patches)
"""
EPISODES = {"n_way": 3, "n_shot": 1, "n_query": 2}
REST = {
    "adapter": {"name": "nearest-centroid"},
    "outer": {"steps": 0},
    "evaluate": {"episodes": 40},
}
BACKBONE = {"name": "patches"}


@pytest.fixture
def pictures(in_process: Call, tmp_path: Path) -> Path:
    """A folder with the splits train and test, and a plugin with a small network."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "patches.py").write_text(PLUGIN)
    folder = tmp_path / "pictures"
    bars.make(folder / "train", {"amber": 4, "blue": 5, "green": 4})
    bars.make(folder / "test", {"amber": 5, "blue": 4, "green": 6}, turned=0.2)
    return folder


@pytest.fixture
def embed(in_process: Call, pictures: Path) -> Call:
    def call(*arguments: object) -> Ended:
        return in_process("embed", *arguments, "--plugins-dir", "plugins")

    return call


def refused(ended: Ended, message: str) -> None:
    lines = [x for x in ended.err.splitlines() if not x.startswith(("--plugins-dir", "imported "))]
    assert ended.code == 2, ended
    assert len(lines) == 1, ended.err
    assert message in lines[0]


def test_a_folder(embed: Call, pictures: Path, tmp_path: Path):
    ended = embed("pictures", "--backbone", "patches", "--out", "made/x.safetensors")
    assert ended.code == 0, ended.err
    assert "made/x.safetensors: 28 items of 3 classes, 8 features each" in ended.out + ended.err
    with safe_open(tmp_path / "made" / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["amber", "blue", "green"]
        x, y, split = map(file.get_tensor, ("x", "y", "split"))
    assert y.tolist() == [0] * 4 + [1] * 5 + [2] * 4 + [0] * 5 + [1] * 4 + [2] * 6
    assert split.tolist() == [0] * 13 + [2] * 15
    files = [file for part in ("train", "test") for file in sorted((pictures / part).glob("*/*"))]
    plugins = [tmp_path / "plugins" / "patches.py"]
    found = core.embed_files(files, BACKBONE, plugins=plugins)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert not list(Path(os.environ["FSL_CACHE"]).rglob("*part*"))


def test_one_split_and_options_of_the_backbone(embed: Call, tmp_path: Path):
    options = ["--split", "test", "-s", "backbone.width=4", "--out", "x.safetensors"]
    ended = embed("pictures", "--backbone", "patches", *options)
    assert ended.code == 0, ended.err
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.get_tensor("x").shape == (15, 4)
        assert set(file.get_tensor("split").tolist()) == {2}


def test_a_folder_with_too_few_classes_for_three_splits(embed: Call, tmp_path: Path):
    bars.make(tmp_path / "few", {"amber": 4, "blue": 5})
    options = ["few", "--backbone", "patches", "--out", "x.safetensors"]
    ended = embed(*options)
    assert ended.code == 0, ended.err
    assert "9 items of 2 classes" in ended.out
    fault = "split '{}' has no items. Classes for it, or another split"
    empty = re.findall(r"^note: left out: .*: split '(\w+)' has no items", ended.err, re.MULTILINE)
    assert 1 <= len(empty) < 3
    for split in ("train", "validation", "test"):
        if split in empty:
            refused(embed(*options, "--split", split), fault.format(split))
        elif len(empty) == 1:
            assert " items of 1 class, 8 " in embed(*options, "--split", split).out


def test_what_cannot_be_embedded(embed: Call, pictures: Path, tmp_path: Path):
    out = ["--out", "x.safetensors"]
    refused(embed("pictures", *out), "pictures: a folder, and no backbone. --backbone NAME")
    named = ["pictures", "--backbone", "patches", *out]
    refused(embed(*named, "--split", "half"), "--split half: no such split. train, validation")
    refused(embed("pictures", "--backbone", "patch", *out), "Did you mean 'patches'?")
    (tmp_path / "own.yaml").write_text("episodes: {name: glyphs}\nbackbone: {name: patches}\n")
    refused(
        embed("own.yaml", "--backbone", "patches", *out), "own.yaml is a recipe and names its own"
    )
    (pictures / "test" / "blue" / "0.png").write_bytes(b"no picture")
    refused(embed(*named, "--split", "test"), "pictures/test/blue/0.png")
    assert not (tmp_path / "x.safetensors").exists()
    ended = embed(*named)
    assert ended.code == 0, ended.err
    assert re.search("^note: left out: .*pictures/test/blue/0.png", ended.err, re.MULTILINE)
    assert "13 items of 3 classes" in ended.out


def test_arrays_give_the_episodes_of_the_frozen_backbone(
    embed: Call, pictures: Path, tmp_path: Path
):
    plugins = [tmp_path / "plugins" / "patches.py"]
    folder = {"name": "image-folder", "root": str(pictures), "image_size": 24, **EPISODES}
    frozen = {"episodes": folder, "backbone": {**BACKBONE, "frozen": True}, **REST}
    assert embed("pictures", "--backbone", "patches", "--out", "x.safetensors").code == 0
    arrays = {"name": "arrays", "file": str(tmp_path / "x.safetensors"), **EPISODES}
    read = {"episodes": arrays, "backbone": {"name": "identity"}, **REST}
    runs = [
        core.run(recipe, out=tmp_path / out, plugins=plugins, progress=False)
        for recipe, out in ((frozen, "frozen"), (read, "read"))
    ]
    assert runs[0].result["accuracy"] == runs[1].result["accuracy"]
    first, second = (figures(tmp_path / out / "episodes.csv") for out in ("frozen", "read"))
    assert first.shape == (40, 3)
    assert len(first[:, 2].unique()) > 30  # losses tell episodes apart
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def figures(table: Path) -> torch.Tensor:
    rows = [*csv.DictReader(table.read_text().splitlines())]
    keys = ("episode", "accuracy", "loss")
    return torch.tensor([[float(row[key]) for key in keys] for row in rows])

"""Fixtures for every test of core; nothing here needs a plugin or a download."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fsl_core.hooks.loader import Loaded, load

TOY_PLUGIN = '''
"""Episodes of Gaussian blobs, far quicker than pictures."""
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

import fsl_core as fsl


class Blobs(fsl.EpisodeSource):
    """Classes are points in the plane, items are points around them."""

    name = "blobs"

    def __init__(self, n_way: Annotated[int, Field(gt=0)] = 3, n_shot: int = 2, n_query: int = 4, spread: float = 0.3):
        self.task = fsl.TaskShape("classification", n_way, n_shot, n_query, (2,), n_way)
        self.spread = spread

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate([self._episode(split, i, seed, task) for i in indices])

    def _episode(self, split, index, seed, task):
        random = torch.Generator().manual_seed(hash_of(split, index, seed))
        centres = 3 * torch.randn(task.n_way, 1, 2, generator=random)

        def items(n):
            x = centres + self.spread * torch.randn(task.n_way, n, 2, generator=random)
            return fsl.LabelledSet(x.flatten(0, 1), torch.arange(task.n_way).repeat_interleave(n))

        return fsl.Episode(items(task.n_shot), items(task.n_query), torch.tensor(index))


def hash_of(split, index, seed):
    return ["train", "validation", "test"].index(split) * 10**9 + index * 1000 + seed


class Explodes(fsl.Adapter):
    """Gives a loss that is not a number from one step on.

    Not at progress 1, as the trial before a run would find it.
    """

    name = "explodes"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module, at_progress: float = 0.5):
        super().__init__()
        self.head, self.at, self.now = torch.nn.Linear(backbone.feature_dim, task.output_dim), at_progress, 0.0

    def on_progress(self, progress):
        self.now = progress

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x)) * (float("nan") if self.at <= self.now < 1 else 1.0)


class Picky(fsl.Adapter):
    """Its constructor refuses what no type can."""

    name = "picky"

    def __init__(self, even: int):
        super().__init__()
        if even % 2:
            raise ValueError(f"even: {even}. A multiple of two")


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Blobs)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Explodes)
    register(Picky)
'''

TOY_RECIPE = """\
seed: 0
episodes: {name: blobs, n_way: 3}
backbone: {name: mlp, hidden: [8]}
adapter: {name: nearest-centroid}
outer:
  optimizer: {name: adam, lr: 0.01}
  meta_batch_size: 2
  steps: 12
  validate_every: 5
  validate_episodes: 4
  checkpoint_every: 4
execution: {mode: loop}
evaluate: {episodes: 10}
"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a user's plugin switches or writes beside the code."""
    switches = ("FSL_LOAD_PLUGINS", "FSL_DISABLED_PLUGINS", "FSL_STRICT_PLUGINS")
    for variable in (*switches, "FSL_GRANTED_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def toy_recipe(tmp_path: Path) -> Path:
    """A recipe that trains in a second, with its one-file plugin beside it."""
    (tmp_path / "fslplugin.py").write_text(TOY_PLUGIN)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(TOY_RECIPE)
    return recipe


@pytest.fixture
def toy_plugins(toy_recipe: Path) -> Loaded:
    return load(entry_points=False, files=[toy_recipe.parent / "fslplugin.py"])


@pytest.fixture
def fsl(tmp_path: Path):
    """Run the command line as a user does, in a process of its own."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fsl_core", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "FSL_LOAD_PLUGINS": "none", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


class Ended(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def call(
    toy_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """The command line in this process: `fsl` without its start-up time, on the toy recipe."""
    from fsl_core.cli import main

    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSL_DATA", raising=False)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fsl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run

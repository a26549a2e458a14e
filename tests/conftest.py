"""Fixtures for every test of core; nothing here needs a plugin or a download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fsl_core.hooks.loader import Loaded, load
from fsl_core.testing import double_precision
from tests.parts.command_line import Call, Ended

TOY = Path(__file__).parent / "parts" / "toy"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a user's plugin switches or writes beside the code."""
    switches = ("FSL_LOAD_PLUGINS", "FSL_DISABLED_PLUGINS", "FSL_STRICT_PLUGINS")
    for variable in (*switches, "FSL_GRANTED_PLUGINS", "FSL_TRACKER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64, and the global generator is seeded."""
    with double_precision():
        yield


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile makes its graphs, forward and backward, without the minute of making code."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def captured_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile makes the forward graph, which holds the gradients of torch.func, and runs it."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def toy_recipe(tmp_path: Path) -> Path:
    """A recipe that trains in a second, with its one-file plugin beside it."""
    for name in ("fslplugin.py", "toy.yaml"):
        shutil.copyfile(TOY / name, tmp_path / name)
    return tmp_path / "toy.yaml"


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
            timeout=600,
            check=False,
        )

    return call


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line in this process: its entry point, without its start-up time."""
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


@pytest.fixture
def call(toy_recipe: Path, in_process: Call) -> Call:
    """`in_process`, in a folder with the toy recipe."""
    return in_process

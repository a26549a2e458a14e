"""Tests of what needs learn2learn are skipped, with the reason, where it could not be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsl_core.errors import PluginError
from fsl_learn2learn.library import learn2learn


@pytest.fixture(autouse=True)
def l2l():
    """The package learn2learn."""
    try:
        return learn2learn()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a user's switches or data, or writes beside the code."""
    for variable in ("FSL_LOAD_PLUGINS", "FSL_DISABLED_PLUGINS", "FSL_STRICT_PLUGINS", "FSL_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

"""A stranger's plugin: the two files of docs/plugins.md, outside the repository, installed by
pip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "plugins.md"
TEST = """
from fsl_centroid import Centroid
from fsl_core.testing import AdapterContract


class TestCentroid(AdapterContract):
    def make(self, task):
        return Centroid(task)
"""


def fence(language: str) -> str:
    return re.search(
        rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    ).group(1)


@pytest.mark.slow
def test_two_files_are_a_plugin(tmp_path: Path, toy_recipe: Path):
    plugin, site = tmp_path / "plugin", tmp_path / "site"
    plugin.mkdir()
    (plugin / "pyproject.toml").write_text(fence("toml"))
    (plugin / "fsl_centroid.py").write_text(fence("python"))
    (plugin / "test_centroid.py").write_text(TEST)
    environment = {**os.environ, "PYTHONPATH": str(site), "FSL_LOAD_PLUGINS": "centroid"}

    def python(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        site,
        plugin,
    )
    listed = json.loads(python("-m", "fsl_core", "plugins", "--json"))
    mine = next(row for row in listed if row["name"] == "centroid")
    assert (mine["distribution"], mine["version"], mine["status"]) == (
        "fsl-centroid",
        "0.1.0",
        "ok",
    )
    assert mine["offers"] == ["adapter centroid"]
    ran = python(
        "-m",
        "fsl_core",
        "run",
        toy_recipe,
        "-s",
        "adapter={name: centroid, temperature: 2.0}",
        "--out",
        "out",
    )
    assert ran.startswith("test accuracy 0.")
    assert "passed" in python(
        "-m", "pytest", "-q", plugin / "test_centroid.py", "-p", "no:cacheprovider"
    )

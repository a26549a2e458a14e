"""Wheels of fsl-core and one plugin alone, in a fresh environment outside the repository, train and evaluate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
RECIPE = """\
episodes: {name: glyphs, n_way: 5, n_shot: 1, n_query: 2}
backbone: {name: conv4, channels: 8}
adapter: {name: nearest-centroid}
outer: {meta_batch_size: 2, steps: 2, validate_every: 0}
evaluate: {episodes: 4}
"""
VARIABLES = {key: value for key, value in os.environ.items() if not key.startswith(("FSL_", "PYTHON"))}


def run(folder: Path, *command: object) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(folder: Path, *arguments: object) -> str:
    return run(folder, sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def link_third_party(folder: Path) -> Path:
    """The installed packages but those of this repository, so that the test needs no network."""
    folder.mkdir()
    installed = {path.name: path for kind in ("platlib", "purelib") for path in Path(sysconfig.get_path(kind)).iterdir()}
    for name, path in installed.items():
        if not name.startswith(("fsl", "_editable", "__pycache__")) and path.suffix != ".pth":
            (folder / name).symlink_to(path)
    return folder


def test_there_are_plugins():
    assert "fsl-maml" in PLUGINS


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_core_and_one_plugin(plugin: str, tmp_path: Path):
    wheels, environment = tmp_path / "wheels", tmp_path / "environment"
    pip(tmp_path, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT, ROOT / "plugins" / plugin)
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    pip(tmp_path, "--python", scripts / "python", "install", "--no-deps", "--no-index", *wheels.glob("*.whl"))
    site = run(tmp_path, scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "third-party.pth").write_text(f"{link_third_party(tmp_path / 'third-party')}\n")
    Path(tmp_path, "recipe.yaml").write_text(RECIPE)

    assert run(tmp_path, scripts / "python", "-c", "import fsl_core; print(fsl_core.__file__)").startswith(site)
    listed = json.loads(run(tmp_path, scripts / "fsl", "plugins", "--json"))
    (found,) = [row for row in listed if row["distribution"] != "fsl-core"]
    assert (found["distribution"], found["status"]) == (plugin, "ok")
    named = [offer.split() for offer in found["offers"] if offer.startswith(("adapter", "weighting"))]
    kind, name = named[0] if named else ("adapter", "nearest-centroid")  # a plugin that observes offers nothing
    section = "adapter" if kind == "adapter" else "outer.weighting"
    ran = run(tmp_path, scripts / "fsl", "run", "recipe.yaml", "-s", f"{section}={{name: {name}}}", "--out", "out")
    assert ran.startswith("test accuracy 0.")
    assert json.loads((tmp_path / "out" / "result.json").read_text())[kind] == name

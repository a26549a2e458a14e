"""Wheels as `make dist` builds them: core and one plugin alone, in a fresh environment outside the
repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from fsl_core.config.document import read_document
from release.dist import PACKAGES, ROOT, build, faults

PLUGINS = [package.name for package in PACKAGES[1:]]
RECIPE = """\
episodes: {name: glyphs, n_way: 5, n_shot: 1, n_query: 2}
backbone: {name: conv4, channels: 8}
adapter: {name: nearest-centroid}
outer: {meta_batch_size: 2, steps: 2, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 4}
"""
DRAWN = {"glyphs", "random-networks", "sinusoid", "threshold-comparison", "wavelet-transform"}
"""Episodes that need no download."""
LIBRARY_APART = {
    "fsl-learn2learn": r".*learn2learn cannot be imported \(.*\)\. To install it: python -m fsl_learn2learn\.install",
}
"""Plugins whose library comes by a command of its own, and what they say without it."""
VARIABLES = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("FSL_", "PYTHON", "PYTEST"))
}
EACH_ALONE = """
import importlib, json, os, sys
from pathlib import Path
from typer.testing import CliRunner
import fsl_core
from fsl_core.cli import app, cells

SECTIONS = {
    "adapter": "adapter", "weighting": "outer.weighting", "hypergradient": "outer.hypergradient"
}
STEPS = '''
import fsl_core as fsl
from fsl_core.testing import GradientSteps


@fsl.hookimpl
def fsl_register_adapters(register):
    register(GradientSteps)
'''

def tried():
    listed = json.loads(CliRunner().invoke(app, ["plugins", "--json"]).stdout)
    (found,) = [row for row in listed if row["distribution"] != "fsl-core"]
    offers = [offer.split() for offer in found["offers"] if offer.split()[0] in SECTIONS]
    kind, name = offers[0] if offers else ("adapter", "nearest-centroid")  # an observer offers none
    chosen = [f"{SECTIONS[kind]}={{name: {name}}}"]
    if kind == "hypergradient":  # it needs an adapter with inner steps
        Path("fslplugin.py").write_text(STEPS)
        chosen += ["adapter={name: gradient-steps}", "episodes={name: sinusoid, tasks: 4}"]
        chosen += ["backbone={name: mlp}"]
    words = [word for key in chosen for word in ("-s", key)]
    ran = CliRunner().invoke(app, ["run", "recipe.yaml", *words, "--out", "out"])
    told = ran.output or str(ran.exception)
    return {"core": fsl_core.__file__, "plugin": found, "kind": kind, "name": name, "ran": told}

for name in cells.IMPORTED:
    importlib.import_module(name)
import torch
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo
for folder in map(Path, sys.argv[1:]):
    if not os.fork():  # a process that has imported core and sees this plugin alone
        sys.path.insert(0, str(folder / "site"))
        os.chdir(folder)
        Path("told.json").write_text(json.dumps(tried()))
        os._exit(0)
    os.wait()
"""


def run(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Source archives and wheels of every package."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages but those of this repository, so that the test needs no network.

    Nor learn2learn, which pip does not install with its plugin.
    """
    folder = tmp_path_factory.mktemp("third-party")
    installed = {
        path.name: path
        for kind in ("platlib", "purelib")
        for path in Path(sysconfig.get_path(kind)).iterdir()
    }
    for name, path in installed.items():
        if (
            not name.startswith(("fsl", "_editable", "__pycache__", "learn2learn"))
            and path.suffix != ".pth"
        ):
            (folder / name).symlink_to(path)
    return folder


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
INSTALL = ("install", "--no-deps", "--no-index")


def wheels_of(built: list[Path], *names: str) -> list[Path]:
    stems = tuple(f"{name.replace('-', '_')}-" for name in names)
    return [file for file in built if file.suffix == ".whl" and file.name.startswith(stems)]


@pytest.fixture
def environment(built: list[Path], third_party: Path, tmp_path: Path):
    """Makes an environment with the wheels of some packages, and returns its folder of programs."""

    def make(*names: str) -> Path:
        folder = tmp_path / "environment"
        run(tmp_path, sys.executable, "-m", "venv", "--without-pip", folder)
        programs = folder / ("Scripts" if os.name == "nt" else "bin")
        into = ("--python", programs / "python")
        run(tmp_path, *PIP, *into, *INSTALL, *wheels_of(built, *names))
        (site,) = folder.glob("[Ll]ib/**/site-packages")
        (site / "third-party.pth").write_text(f"{third_party}\n")
        return programs

    return make


@pytest.mark.parametrize(
    "package", PACKAGES, ids=lambda package: package.name if package != ROOT else "fsl-core"
)
def test_metadata_is_complete(package: Path):
    told = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (package / told["readme"]).is_file()
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (told["license"], told["license-files"]) == ("MIT", ["LICENSE"])
    assert told["requires-python"] == core["requires-python"]
    assert {c for c in core["classifiers"] if not c.startswith("Framework")} <= set(
        told["classifiers"]
    )
    assert told["description"]
    assert "fsl-plugin" in told["keywords"]
    source = package / "src" if package != ROOT else package
    assert (source / told["name"].replace("-", "_") / "py.typed").is_file()
    if package != ROOT:
        major, minor, _ = core["version"].split(".")
        assert f"fsl-core>={major}.{minor},<{major}.{int(minor) + 1}" in told["dependencies"]
        assert told["name"] == package.name


def test_built_files_have_no_faults(built: list[Path]):
    assert len(built) == 2 * len(PACKAGES) > 2
    assert [fault for file in built for fault in faults(file)] == []


def test_recipes_that_need_no_download_travel_with_core(built: list[Path]):
    drawn = {
        path
        for path in (ROOT / "recipes").rglob("*.yaml")
        if read_document(path).data["episodes"]["name"] in DRAWN
    }
    assert len(drawn) >= 10
    wanted = {f"fsl_core/{path.relative_to(ROOT)}": path.read_bytes() for path in drawn}
    (core,) = [file for file in built if file.name.startswith("fsl_core") and file.suffix == ".whl"]
    with zipfile.ZipFile(core) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("fsl_core/recipes/")]
        assert {name: wheel.read(name) for name in names} == wanted


def test_faults_are_found(tmp_path: Path):
    wheel = tmp_path / "fsl_x-1-py3-none-any.whl"
    head = "Metadata-Version: 2.4\nName: fsl-x\nVersion: 1\nRequires-Dist: fsl-core>=0.1\n"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fsl_x-1.dist-info/METADATA", head)
        file.writestr("fsl_x/__pycache__/a.pyc", "")
    found = list(faults(wheel))
    for what in (
        "no long description",
        "licence None",
        "no summary",
        "no classifiers",
        "fsl-core ['>=0.1']",
        "no fsl_x/py.typed",
    ):
        assert any(what in fault for fault in found), found
    assert "fsl_x-1-py3-none-any.whl: fsl_x/__pycache__/a.pyc. Sources alone." in found
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(
            "fsl_x-1.dist-info/METADATA", "Metadata-Version: 2.4\nName: fsl x\nVersion: one\n"
        )
    assert any("'one'" in fault for fault in faults(wheel))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_core_and_each_plugin_alone(environment, built: list[Path], tmp_path: Path):
    programs = environment("fsl-core")
    folders = [tmp_path / plugin for plugin in PLUGINS]
    for plugin, folder in zip(PLUGINS, folders, strict=True):
        run(tmp_path, *PIP, *INSTALL, "--target", folder / "site", *wheels_of(built, plugin))
        (folder / "recipe.yaml").write_text(RECIPE)
    run(tmp_path, programs / "python", "-c", EACH_ALONE, *folders)
    told = {plugin: (tmp_path / plugin / "told.json").read_text() for plugin in PLUGINS}
    found = {plugin: _wrong(plugin, json.loads(told[plugin]), tmp_path) for plugin in PLUGINS}
    assert not {plugin: wrong for plugin, wrong in found.items() if wrong}


def _wrong(plugin: str, told: dict, folder: Path) -> str:
    """What is not as it should be; empty if all is."""
    if not told["core"].startswith(str(folder / "environment")):
        return told["core"]
    if (told["plugin"]["distribution"], told["plugin"]["status"]) != (plugin, "ok"):
        return str(told["plugin"])
    ran = told["ran"].replace("\n", " ").strip()
    if plugin in LIBRARY_APART:
        return "" if re.fullmatch(LIBRARY_APART[plugin], ran) else ran
    if not ran.startswith(("test accuracy 0.", "test mse ")):
        return ran
    result = json.loads((folder / plugin / "out" / "result.json").read_text())
    return "" if result[told["kind"]] == told["name"] else str(result)


@pytest.mark.slow
def test_programs_of_the_environment(environment, tmp_path: Path):
    """What a user types: `fsl run` of a plugin's recipe by its name, and the conformance kit over
    it."""
    programs = environment("fsl-core", "fsl-hypermaml")
    keys = (
        "outer.steps=2",
        "outer.validate_every=0",
        "evaluate.episodes=2",
        "backbone.channels=8",
        "execution.mode=loop",
    )
    ran = run(
        tmp_path,
        programs / "fsl",
        "run",
        "glyphs/5w1s-hypermaml",
        *(f"-s{key}" for key in keys),
        "--out",
        "out",
    )
    assert ran.startswith("test accuracy 0.")
    checked = run(
        tmp_path,
        programs / "python",
        "-m",
        "pytest",
        "-q",
        "--fsl-adapter",
        "hypermaml",
        "--fsl-report",
        "report.md",
    )
    assert " passed" in checked.splitlines()[-1]
    report = (tmp_path / "report.md").read_text()
    assert "fsl-hypermaml 0.1.0, fsl-core 0.1.0, torch " in report
    assert ", 0 failed, " in report

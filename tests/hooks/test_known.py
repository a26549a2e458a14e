"""What a recipe is told to install is what the packages of this repository register."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from fsl_core.hooks.known import PACKAGES, TRACKERS
from fsl_core.hooks.loader import load

FOLDERS = sorted(file.parent for file in (Path(__file__).parents[2] / "plugins").glob("*/*.toml"))


def offered_by(folder: Path) -> set[tuple[str, str]]:
    """Kind and name of all that the package registers, as a user who installs it has them."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = [import_module(name) for name in project["entry-points"]["fsl"].values()]
    plugins = load(entry_points=False, modules=modules).plugins[-len(modules) :]
    assert {plugin.status for plugin in plugins} == {"ok"}
    return {offer for plugin in plugins for offer in plugin.offers}


def known_of(package: str) -> set[tuple[str, str]]:
    return {
        (kind, name)
        for kind, packages in PACKAGES.items()
        for name, offering in packages.items()
        if offering == package
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_package_offers_what_is_known_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(folder / "src")
    try:
        offered = offered_by(folder)
    except ModuleNotFoundError as error:
        pytest.skip(f"{folder.name} needs {error.name}, which is not installed")
    assert offered == known_of(folder.name)


def test_every_known_package_has_a_folder_of_its_name():
    named = {package for packages in PACKAGES.values() for package in packages.values()}
    assert len(FOLDERS) > 7
    assert named <= {folder.name for folder in FOLDERS}
    for folder in FOLDERS:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["name"] == folder.name


@pytest.mark.parametrize("package", sorted(set(TRACKERS.values())))
def test_a_tracker_goes_by_the_names_known_of_it(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "plugins" / package / "src")
    try:
        module = import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        pytest.skip(f"{package} needs {error.name}, which is not installed")
    assert {*module.FSL_TRACKERS} == {name for name, of in TRACKERS.items() if of == package}

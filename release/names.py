"""Names, versions and ranges of all packages, before anything of them is published."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from release.dist import PACKAGES

CORE, KEYWORD = "fsl-core", "fsl-plugin"


def faults_of_all(tag: str = "", packages: list[Path] | None = None) -> Iterator[str]:
    """What forbids a release, `<package>: <what was found>. <what would fit>.`

    tag: of the release, which has to be `v` and the version of core; "": none is made.
    """
    found = {folder: _project(folder) for folder in packages or PACKAGES}
    core = next(project["version"] for project in found.values() if project["name"] == CORE)
    if tag and tag != f"v{core}":
        yield f"{CORE}: version {core}, and the tag is {tag}. The tag v{core}"
    for folder, project in found.items():
        name = project["name"]
        yield from (f"{name}: {fault}" for fault in _faults(folder, project, core))
        if tag:
            yield from (f"{name}: {fault}" for fault in _unreleased(folder, project["version"]))


def _project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _faults(folder: Path, project: dict[str, Any], core: str) -> Iterator[str]:
    name, version = project["name"], project["version"]
    if not _canonical(version):
        yield f"version {version}. One as packages write it, such as 0.1.0"
    if KEYWORD not in project.get("keywords", []):
        yield f"keywords without {KEYWORD}. With it, `fsl plugins --available` finds it"
    if name == CORE:
        return
    if folder.name != name:
        yield f"in the folder {folder.name}. A folder of its name"
    module = name.replace("-", "_")
    if not (folder / "src" / module / "__init__.py").is_file():
        yield f"no src/{module}/__init__.py. The module of its name"
    if not project.get("entry-points", {}).get("fsl"):
        yield "no entry point in the group fsl. One, or fsl-core does not find it"
    ranges = [r for r in map(Requirement, project.get("dependencies", [])) if r.name == CORE]
    told = ", ".join(str(r.specifier) for r in ranges) or "none"
    if not ranges or not all(r.specifier.contains(core, prereleases=True) for r in ranges):
        yield f"range {told} of {CORE}, which is {core} here. One that has it"
    elif not any(part.operator == "<" for r in ranges for part in r.specifier):
        yield f"range {told} of {CORE} without an end. One such as >=0.1,<0.2"


def _unreleased(folder: Path, version: str) -> Iterator[str]:
    """Of a version that is released, the changelog has a heading with the version and a date."""
    text = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    own = next((line for line in headings if version in line), "")
    if not own or "unreleased" in own.lower():
        yield f"CHANGELOG.md: {own or 'no heading'} for {version}. `## {version}` and its date"


def _canonical(version: str) -> bool:
    try:
        return str(Version(version)) == version
    except InvalidVersion:
        return False

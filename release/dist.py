"""Builds every package, and reads back what an index and a user will see.

A wheel is built from the source archive, so that the archive is known to be whole.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

from build import ProjectBuilder
from packaging.metadata import Metadata
from pyproject_hooks import quiet_subprocess_runner

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def build(folder: Path) -> list[Path]:
    """Write a source archive and a wheel of each package into a folder.

    Returns the files, in the order of PACKAGES.
    """
    files = []
    for package in PACKAGES:
        archive = _build(package, "sdist", folder)
        with TemporaryDirectory() as unpacked:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            (source,) = Path(unpacked).iterdir()
            wheel = _build(source, "wheel", folder)
        files += [archive, wheel]
    return files


def _build(source: Path, what: Literal["sdist", "wheel"], folder: Path) -> Path:
    return Path(ProjectBuilder(source, runner=quiet_subprocess_runner).build(what, folder))


def faults(file: Path) -> Iterator[str]:
    """What is wrong with a built file, `<file>: <what was found>. <what would fit>.`"""
    names, text = _contents(file)
    try:
        metadata = Metadata.from_email(text, validate=True)
    except ExceptionGroup as error:
        for fault in error.exceptions:
            yield f"{file.name}: metadata: {fault}. As the core metadata specification has it."
        return
    yield from _metadata_faults(file, metadata, names)
    module = metadata.name.replace("-", "_")
    if not any(PurePosixPath(name).match(f"{module}/py.typed") for name in names):
        yield f"{file.name}: no {module}/py.typed. The marker of typed packages."
    for name in names:
        if "__pycache__" in name or name.endswith(".pyc"):
            yield f"{file.name}: {name}. Sources alone."


def _metadata_faults(file: Path, metadata: Metadata, names: list[str]) -> Iterator[str]:
    markdown = metadata.description_content_type == "text/markdown"
    if not markdown or len(metadata.description or "") < 100:
        yield f"{file.name}: no long description. A README.md as `readme`."
    if metadata.license_expression != "MIT" or not any(name.endswith("LICENSE") for name in names):
        yield f"{file.name}: licence {metadata.license_expression}. MIT, with the file LICENSE."
    for wanted in ("summary", "requires_python", "classifiers", "keywords"):
        if not getattr(metadata, wanted):
            yield f"{file.name}: no {wanted}. One in pyproject.toml."
    of_core = [r for r in metadata.requires_dist or () if r.name == "fsl-core"]
    ranges = [str(requirement.specifier) for requirement in of_core]
    bounded = any(">=" in range_ and "<" in range_.replace("<=", "") for range_ in ranges)
    if metadata.name != "fsl-core" and not bounded:
        found = ranges or "not at all"
        yield f"{file.name}: depends on fsl-core {found}. A range such as >=0.1,<0.2."


def _contents(file: Path) -> tuple[list[str], bytes]:
    """Names of the files inside, and the metadata."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            names = wheel.namelist()
            metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
            return names, wheel.read(metadata)
    with tarfile.open(file) as archive:
        names = archive.getnames()
        outermost = min((name for name in names if name.endswith("/PKG-INFO")), key=len)
        content = archive.extractfile(outermost)
        if content is None:
            raise ValueError(f"{file.name}: {outermost} is not a file. The metadata of a package")
        return names, content.read()

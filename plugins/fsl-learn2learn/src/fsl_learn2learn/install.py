"""Installs learn2learn, which plain pip cannot build on Python 3.11 and later.

    python -m fsl_learn2learn.install [--metaoptnet] [options of pip install]

such as `-c constraints.txt`.

Its published C files are too old for these versions of Python. Cython makes them again, and is put
into a folder of its own for that time. Of the sixty packages that learn2learn asks for, only those
are installed that its import needs, so that no version of anything else changes. pip keeps the
wheel: the next installation takes a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import metadata
from tempfile import TemporaryDirectory

VERSION = "0.2.0"
IMPORTS = ["gym", "requests", "scipy", "tqdm", "torchvision"]
BUILD = ["cython", "setuptools"]
OPTIONS = [
    "--use-pep517",
    "--no-build-isolation",
    "--no-deps",
    "--config-settings=--global-option=build_ext",
]
QPTH = ["qpth==0.0.18"]  # asks for a NumPy below 2 and works with a later one
QPTH_IMPORTS = ["cvxpy"]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 after one line that says what failed."""
    parser = argparse.ArgumentParser(
        prog="python -m fsl_learn2learn.install",
        description=f"Install learn2learn {VERSION}.",
        epilog="Other options are given to pip install.",
    )
    parser.add_argument(
        "--metaoptnet",
        action="store_true",
        help="also install qpth, which MetaOptNet needs (170 MB)",
    )
    chosen, options = parser.parse_known_args(arguments)
    reason = install(options) or (install_qpth(options) if chosen.metaoptnet else "")
    if reason:
        print(
            f"fsl-learn2learn: learn2learn {VERSION} was not installed: {reason}", file=sys.stderr
        )
    return 1 if reason else 0


def install(options: list[str]) -> str:
    """Install learn2learn and what its import needs. If that fails, the reason in one line."""
    if reason := _pip(*options, *IMPORTS):
        return reason
    if installed("learn2learn") == VERSION:
        return ""
    with TemporaryDirectory() as tools:
        if reason := _pip("--target", tools, *BUILD):
            return reason
        return _pip(*options, *OPTIONS, f"learn2learn=={VERSION}", path=tools)


def install_qpth(options: list[str]) -> str:
    return _pip(*options, *QPTH_IMPORTS) or _pip(*options, "--no-deps", *QPTH)


def installed(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _pip(*arguments: str, path: str = "") -> str:
    quietly = ["--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *quietly, *arguments]
    found = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.splitlines()
    errors = [line.strip() for line in lines if "error" in line.lower()] or [*lines, ""]
    return max(errors, key=len) or f"pip ended with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())

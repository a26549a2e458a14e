"""docs/tutorial.md, followed step by step: each file is written as it stands there, each command is
run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsl_core.cli import app

PAGE = (Path(__file__).parent.parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = ["-s", "outer.steps=2", "-s", "evaluate.episodes=4", "-s", "backbone.channels=4"]
NETWORK = [["pip", "install"], ["twine", "upload"]]
"""Commands that fetch or publish; what they would act on is checked instead."""


def python(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fsl(*arguments: str) -> str:
    quick = QUICK if arguments[0] == "run" else []
    done = CliRunner().invoke(app, [*arguments, *quick])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "matching")
    said: dict[str, str] = {}
    left_out = []
    for language, title, content in FENCE.findall(PAGE):
        if title:
            (tmp_path / title).write_text(content)
        for line in content.splitlines() if language == "sh" else ():
            command = shlex.split(line)
            if command[:2] in NETWORK:
                left_out.append(line)
            elif command[0] == "fsl":
                said[line] = fsl(*command[1:])
            else:
                assert command[:2] == ["python", "-m"], f"{line}: a command the test does not know"
                options = ["--no-isolation"] if command[2] == "build" else []
                said[line] = python(tmp_path, *command[1:], *options)
            if line == "pip install -e .":  # the network aside, with what is installed already
                site = tmp_path / "site"
                python(
                    tmp_path,
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--no-deps",
                    "--no-build-isolation",
                    "--target",
                    site,
                    tmp_path,
                )
                monkeypatch.syspath_prepend(site)
    assert len(left_out) == 5
    assert (
        "scale   number > 0  10.0     factor of the cosines"
        in said["fsl show adapter matching --plugins-dir ."]
    )
    assert (
        "characters.yaml: ok. matching on conv4"
        in said["fsl check characters.yaml --plugins-dir ."]
    )
    assert "second minus first: " in said["fsl compare runs/centroid runs/matching"]
    assert " passed" in said["python -m pytest -q test_matching.py"]
    assert re.search(
        r"matching +fsl-matching 0\.1\.0 +1 +ok .* adapter matching", said["fsl plugins"]
    )
    wheel, archive = (
        tmp_path / "dist" / "fsl_matching-0.1.0-py3-none-any.whl",
        tmp_path / "dist" / "fsl_matching-0.1.0.tar.gz",
    )
    assert "fsl_matching.py" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("fsl_matching-0.1.0/") for name in packed.getnames()}
    assert names == {
        "fsl_matching.py",
        "test_matching.py",
        "README.md",
        "pyproject.toml",
        "PKG-INFO",
    }


def test_the_adapter_is_thirty_lines():
    code = next(content for _, title, content in FENCE.findall(PAGE) if title == "fsl_matching.py")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 32


def test_every_fence_has_a_known_kind():
    kinds = [(language, bool(title)) for language, title, _ in FENCE.findall(PAGE)]
    assert len(kinds) == PAGE.count("```") / 2
    assert set(kinds) == {
        ("text", False),
        ("sh", False),
        ("python", True),
        ("yaml", True),
        ("toml", True),
        ("markdown", True),
    }

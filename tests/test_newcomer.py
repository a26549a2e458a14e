"""The commands of README and docs, as a newcomer types them, in this process; a short budget is
laid over `fsl run`.

Left to other tests: `pip install` and a generated package's own tests and recipe
(test_new_plugin.py, test_wheels.py), the two files of docs/plugins.md (test_stranger.py), `pytest
--fsl-adapter` (testing/test_plugin.py), sweeps (sweeping/), `make` (CI).
"""

from __future__ import annotations

import csv
import re
import shlex
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from fsl_core.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = (
    "outer.steps=2",
    "outer.validate_every=0",
    "evaluate.episodes=2",
    "evaluate.n_query=2",
    "execution.mode=loop",
)
OTHER_PROGRAMS = (
    "pip install ",
    "pytest ",
    "python -m pytest ",
    "python -m build",
    "twine upload ",
    "torchrun ",
    "ray ",
    "hf ",
)
LEFT_OUT = ("fsl run fsl-spread/recipes/glyphs.yaml",)  # needs the package to be installed


def commands(page: Path) -> list[str]:
    """The lines of its shell fences."""
    fences = re.findall(
        r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    joined = (fence.replace("\\\n", " ") for fence in fences)
    return [line for fence in joined for line in fence.splitlines() if line]


def scripts(page: Path) -> list[str]:
    """The Python files that it shows whole."""
    return re.findall(r'^```python title="(\w+\.py)"$', page.read_text("utf-8"), re.MULTILINE)


def type_in(line: str):
    program, *arguments = shlex.split(line)
    assert program == "fsl"
    short = [f"-s{key}" for key in SHORT] if arguments[0] == "run" else []
    done = CliRunner().invoke(app, [*arguments, *short])
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    return done


def paint(file: Path, seed: int) -> None:
    """A stroke on a sheet of its own size, as a phone would save it."""
    random = np.random.default_rng(seed)
    sheet = np.full((60 + 4 * seed, 80, 3), 255, dtype=np.uint8)
    column = random.integers(10, 60)
    sheet[10:50, column : column + 9] = random.integers(0, 90, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(file)


def test_every_command_of_the_pages_is_known():
    found = [line for page in PAGES for line in commands(page)]
    assert len(found) >= 10
    written = [f"python {name}" for page in PAGES for name in scripts(page)]
    unknown = [
        line
        for line in found
        if not line.startswith(("fsl ", "make ", *OTHER_PROGRAMS)) and line not in written
    ]
    assert not unknown
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = {shlex.split(line)[1] for line in found if line.startswith("fsl ")}
    assert {"run", "predict", "new-plugin"} <= named <= known


def test_commands_in_sentences_are_known_with_their_options():
    group = typer.main.get_command(app)
    found = [
        shlex.split(text.replace("…", ""))
        for page in PAGES
        for text in re.findall(r"`(fsl [^`\n]+)`", page.read_text(encoding="utf-8"))
    ]
    assert len(found) > 30
    for _, name, *words in found:
        assert name in group.commands or name == "COMMAND", name
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        known = {flag for option in group.commands[name].params for flag in option.opts}
        assert options <= known, f"fsl {name}: {options - known}"


def test_what_make_is_asked_for_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    lines = [line for page in PAGES for line in commands(page) if line.startswith("make ")]
    words = [re.findall(r"`(make [a-z-]+)", page.read_text(encoding="utf-8")) for page in PAGES]
    asked = {line.split()[1] for line in (*lines, *chain.from_iterable(words))}
    assert {"run", "test"} <= asked <= targets
    (recipe,) = re.findall(r"^recipe \?= (.+)$", makefile, re.MULTILINE)
    assert (ROOT / recipe).is_file()


def test_what_is_not_published_yet_is_not_promised():
    """Before the first line that pip cannot do today stands when it will."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    before = {
        name: text.partition(line.group())[0]
        for name, text in texts.items()
        if (line := re.search(r"^pip install .*\bfsl-core", text, re.MULTILINE))
    }
    assert "README.md" in before
    assert [name for name, text in before.items() if not re.search(r"\bpublished\b", text)] == []


@pytest.mark.slow
def test_quickstart_then_own_pictures(tmp_path: Path):
    pytest.importorskip("fsl_maml", reason="the quickstart installs fsl-maml")
    for c, name in enumerate(("cup", "fork", "knife", "plate", "spoon")):
        for shot in range(2):
            paint(tmp_path / "labelled" / name / f"{shot}.jpg", 2 * c + shot)
    for folder in ("new", "newer"):
        paint(tmp_path / folder / "IMG_0042.jpg", 3)
    ran = [type_in(line).stdout for line in commands(ROOT / "README.md") if line.startswith("fsl ")]
    listed, trained = ran
    assert "glyphs/5w1s-maml " in listed
    assert trained.startswith("test accuracy 0.")
    assert "report: runs/5w1s-maml/report.html" in trained
    own = commands(ROOT / "docs" / "own-images.md")
    predict = [line for line in own if not line.startswith("fsl label ")]  # test_readers_pages.py
    first, *others = [type_in(line).stdout for line in predict]
    assert first.startswith("1 pictures: 1 ")
    assert len(others) == 2
    (row,) = csv.DictReader((tmp_path / "new.csv").read_text().splitlines())
    assert row["file"] == "IMG_0042.jpg"
    assert row["predicted"] in ("cup", "fork", "knife", "plate", "spoon")
    assert (tmp_path / "new.html").stat().st_size > 1000
    assert (tmp_path / "cups.safetensors").is_file()


def test_a_plugin_of_ones_own(tmp_path: Path):
    pytest.importorskip("copier", reason="extra fsl-core[templates]")
    lines = [
        line
        for line in commands(ROOT / "docs" / "plugins.md")
        if not line.startswith(OTHER_PROGRAMS)
    ]
    for line in lines:
        if line not in LEFT_OUT:
            type_in(line)
    paths = [
        path
        for line in commands(ROOT / "docs" / "plugins.md")
        for path in re.findall(r"fsl-spread[^'\[ ]*", line)
    ]
    assert len(paths) == 4
    assert all((tmp_path / path).exists() for path in paths)

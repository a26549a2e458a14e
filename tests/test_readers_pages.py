"""Every command on the paths of the three readers is run as its page writes it.

The paths begin in docs/index.md. What the pages take for granted (runs, folders, recipes) is made
here, small; a word in capitals is replaced; a short budget is laid over what trains. Pages that
other tests follow from top to bottom are named below with them.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fsl_core
from fsl_core.cli import app
from fsl_core.data.vision import torchvision

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HERE = ("backbones", "benchmarks", "diagnosing", "own-images", "recipes", "sweeps")
FOLLOWED = {
    "index": "tests/test_first_page.py",
    "quickstart": "tests/test_newcomer.py",
    "own-data": "tests/cli/test_own_data.py",
    "sharing": "plugins/fsl-hub/tests/test_whole_path.py",
    "tutorial": "tests/cli/test_tutorial.py",
    "plugins": "tests/test_newcomer.py",
}
LEFT_OUT = {
    "fsl bench omniglot-5w1s runs/mine -s episodes.root=DIR": "needs Omniglot, 600 episodes",
    "fsl leaderboard results": "needs what that command writes; tests/cli/test_bench.py",
    "fsl eval runs/mine --on name=mnist --on split=by-image": "needs MNIST",
}
SHORT = ("outer.steps=2", "outer.validate_every=0", "evaluate.episodes=2", "execution.mode=loop")
SMALL = {
    "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 2},
    "backbone": {"name": "conv4", "channels": 4, "blocks": 2},
    "adapter": {"name": "maml", "inner_lr": 0.1, "inner_steps": 1},
    "outer": {"meta_batch_size": 2, "steps": 2, "validate_every": 0},
    "execution": {"mode": "loop"},
    "evaluate": {"episodes": 2},
}


def fences(page: Path) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page: str) -> list[str]:
    """Those of fsl, in their order, without comments."""
    lines = "\n".join(text for language, text in fences(DOCS / f"{page}.md") if language == "sh")
    found = [shlex.split(line, comments=True) for line in lines.splitlines()]
    return [shlex.join(words) for words in found if words and words[0] == "fsl"]


def of_the_readers() -> set[str]:
    """The pages that `Three ways on` names, and the two before them."""
    ways = (DOCS / "index.md").read_text("utf-8").partition("## Three ways on")[2]
    linked = re.findall(r"\]\((\w[\w-]*)\.md\)", ways.partition("The [gallery]")[0])
    return {"index", "quickstart", *linked}


def test_every_page_with_commands_is_followed():
    pages = of_the_readers()
    assert len(pages) > 12
    typed = {page for page in pages if commands(page)} | {"index"}
    assert typed == {*HERE, *FOLLOWED}
    for page, test in FOLLOWED.items():
        if (ROOT / test).exists() or page != "sharing":  # a core alone has no plugins beside it
            named = {f"{page}.md", "README.md"} if page == "quickstart" else {f"{page}.md"}
            text = (ROOT / test).read_text("utf-8")
            assert any(name in text for name in named), f"{test} does not follow {page}.md"
    # That page shows the commands of README, which the test of a newcomer types.
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(line in readme for line in commands("quickstart"))
    assert set(LEFT_OUT) <= {line for page in HERE for line in commands(page)}


def test_commands_stand_in_fences_for_commands():
    """Elsewhere no test would find them."""
    for page in of_the_readers():
        for language, text in fences(DOCS / f"{page}.md"):
            if language != "sh":
                assert not re.findall(r"^fsl ", text, re.M), f"{page}.md: {language}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted."""
    pytest.importorskip("fsl_maml", reason="the pages train with maml")
    folder = tmp_path_factory.mktemp("workshop")
    spec = spec_from_file_location("drawings", DOCS / "drawings.py")
    assert spec is not None
    assert spec.loader is not None
    drawings = module_from_spec(spec)
    spec.loader.exec_module(drawings)
    drawings.make(folder)  # sorted, new
    for there, here in {"sorted": "labelled", "new": "newer"}.items():
        shutil.copytree(folder / there, folder / here)
    photos = {"name": "image-folder", "root": "photos", "n_way": 2, "n_query": 1}
    shutil.copytree(folder / "sorted", folder / "photos")
    own = {**SMALL, "episodes": {**photos, "image_size": 28, "classes": {"train": 0.34}}}
    frozen = {"name": "conv4", "channels": 4, "blocks": 2, "frozen": True}
    head = {
        "backbone": {**frozen, "norm": "group"},
        "adapter": {"name": "nearest-centroid"},
        "outer": {"steps": 0},
    }
    other = {"name": "glyphs", "alphabet": 1, "label": "another-alphabet"}
    recipes = {
        "small": SMALL,
        "omniglot": SMALL,
        "on": {**SMALL, "evaluate": {"episodes": 2, "on": [other]}},
        "other-recipe": {**SMALL, "episodes": {**SMALL["episodes"], "alphabet": 2}},
        "my-recipe": own,
        "recipe": {**SMALL, **head},
        "RECIPE": {**SMALL, "matrix": {"seed": [0]}},
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    weights = folder / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision().models.resnet18().state_dict(), weights)
    for name in ("5w1s-maml", "maml", "anil", "mine"):
        part = ["-s", "adapter.adapted=head"] if name == "anil" else []
        recipe = "on.yaml" if name == "mine" else "small.yaml"
        fsl_core.run(folder / recipe, out=folder / "runs" / name, overrides=part[1:])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", HERE)
def test_the_commands_of_a_page(
    page: str, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for line in commands(page):
        if line not in LEFT_OUT:
            type_in(line)


def type_in(line: str) -> None:
    words = [f"{word}.yaml" if word == "RECIPE" else word for word in shlex.split(line)[1:]]
    if words[0] == "run":
        words += [f"-s{each}" for each in SHORT]
        if "--out" in words:  # where another page takes a run for granted
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"

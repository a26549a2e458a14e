"""`fsl new-plugin`: a package of each kind that installs, passes its own tests, runs its recipe,
and reads as ours do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsl_core.cli import app
from fsl_core.cli.scaffolding import Kind
from fsl_core.errors import PluginError

INSTALLED = {distribution.name for distribution in distributions()}
pytest.importorskip("copier", reason="extra fsl-core[templates]")
AUTHOR = 'Ada "Countess" Lovelace'
MADE = {
    Kind.adapter: "fsl-spread",
    Kind.hypergradient: "fsl-half-way",
    Kind.weighting: "fsl-easy-first",
    Kind.backbone: "fsl-small-net",
    Kind.episodes: "fsl-clouds",
    Kind.launcher: "fsl-gently",
    Kind.searcher: "fsl-halton",
}
RUNS = """
import sys
import warnings

from typer.testing import CliRunner

from fsl_core.cli import app

for number, recipe in enumerate(sys.argv[1:]):
    quick = [f"-s{key}" for key in ("outer.steps=1", "evaluate.episodes=2", "execution.mode=loop")]
    done = CliRunner().invoke(app, ["run", recipe, *quick, "--out", f"out-{number}"])
    print(done.output.splitlines()[0], done.exception or "")
"""


def new_plugin(*arguments: object):
    return CliRunner().invoke(app, ["new-plugin", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each kind."""
    folder = tmp_path_factory.mktemp("made")
    for kind, name in MADE.items():
        done = new_plugin(name, "--kind", kind.value, "--out", folder, "--author", AUTHOR)
        assert done.exit_code == 0, done.output
        assert f"pytest {folder / name}" in done.output
    return folder


@pytest.mark.slow
def test_packages_install_pass_their_tests_and_run(folder: Path, tmp_path: Path):
    site = tmp_path / "site"
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "FSL_LOAD_PLUGINS": ",".join([*MADE.values(), *({"fsl-maml"} & INSTALLED)]),
    }

    def python(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    packages = [folder / name for name in MADE.values()]
    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        site,
        *packages,
    )
    installed = [
        f"--fsl-{kind}={name.removeprefix('fsl-')}"
        for kind, name in MADE.items()
        if kind not in (Kind.backbone, Kind.launcher, Kind.searcher)
    ]
    installed += ["--fsl-claims={exact: 'no'}"]
    settings = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        packages[0] / "pyproject.toml",
        "--rootdir",
        tmp_path,
    ]
    tested = python(
        "-m", "pytest", *settings, *installed, *(package / "tests" for package in packages)
    )
    assert " passed" in tested.splitlines()[-1]
    assert tested.count(", 0 failed, ") == len(installed) - 1
    assert "fsl-clouds 0.1.0" in tested  # what is installed, not what lies in the folder
    recipes = [recipe for package in packages for recipe in package.glob("recipes/*.yaml")]
    assert len(recipes) == len(MADE)
    of_search = recipes.pop([*MADE].index(Kind.searcher))
    of_sweep = recipes.pop([*MADE].index(Kind.launcher))
    quick = ("-souter.steps=1", "-sevaluate.episodes=2", "-sexecution.mode=loop")
    python("-m", "fsl_core", "sweep", of_sweep, *quick)
    assert len([*tmp_path.glob("runs/glyphs-sweep/runs/*/result.json")]) == 2
    python("-m", "fsl_core", "search", of_search, *quick, "-souter.validate_episodes=2")
    assert len([*tmp_path.glob("runs/glyphs-search/runs/*/validated.json")]) == 4
    needed = [
        re.findall(r"fsl-[a-z-]+", recipe.read_text().split("requires:")[1]) for recipe in recipes
    ]
    runnable = [
        recipe
        for recipe, names in zip(recipes, needed, strict=True)
        if set(names) <= {*MADE.values(), *INSTALLED}
    ]
    scores = python("-c", RUNS, *runnable).splitlines()
    assert len(scores) == len(runnable) >= 4
    assert all(score.startswith("test accuracy ") for score in scores), scores
    results = [
        json.loads((tmp_path / f"out-{n}" / "result.json").read_text())
        for n in range(len(runnable))
    ]
    assert [result["adapter"] for result in results if result["adapter"] != "maml"] == [
        "spread",
        *["nearest-centroid"] * 3,
    ]
    with_maml = [result["hypergradient"] for result in results if result["adapter"] == "maml"]
    assert with_maml == ["half-way"] * (len(runnable) - 4)


def test_packages_are_complete(folder: Path):
    for kind, name in MADE.items():
        package = folder / name
        metadata = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        assert metadata["authors"] == [{"name": AUTHOR}]
        assert "fsl-core>=0.1,<0.2" in metadata["dependencies"]
        assert AUTHOR in (package / "LICENSE").read_text()
        module = package / "src" / name.replace("-", "_")
        assert {file.name for file in module.iterdir()} == {"__init__.py", f"{kind}.py", "py.typed"}
        workflow = (package / ".github" / "workflows" / "test.yml").read_text()
        assert 'core: ["fsl-core==0.1.*", "fsl-core<0.2"]' in workflow
        assert "${{ matrix.core }}" in workflow
        files = [file for file in package.rglob("*") if file.is_file()]
        texts = [file.read_text() for file in files if file.suffix != ".pyc"]
        assert len(texts) == 10
        assert not [text for text in texts if "[[" in text or "[%" in text or "TODO" in text]


def test_packages_are_well_formed(folder: Path):
    ruff = pytest.importorskip("ruff.__main__", reason="ruff is a tool of development")
    settings = Path(__file__).parent.parent / "pyproject.toml"
    command = [
        ruff.find_ruff_bin(),
        "check",
        "--quiet",
        "--no-cache",
        "--ignore=I001",
        "--config",
        str(settings),
        str(folder),
    ]  # they are third parties to us
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_nothing_is_overwritten(folder: Path):
    before = (folder / "fsl-spread" / "README.md").read_text()
    done = new_plugin("fsl-spread", "--kind", "weighting", "--out", folder)
    assert isinstance(done.exception, PluginError)
    assert (
        str(done.exception)
        == f"{folder / 'fsl-spread'}: exists. Another name, or another folder with --out"
    )
    assert (folder / "fsl-spread" / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "My Net",
            "backbone",
            r"My Net: not a name of a plugin\. fsl- and words .*, such as fsl-my-net$",
        ),
        ("fsl_net", "backbone", r"such as fsl-net$"),
        ("fsl-Net", "backbone", r"such as fsl-net$"),
        ("fsl-", "backbone", r"such as fsl-mine$"),
        ("fsl-core", "adapter", r"fsl-core: a package with that name exists\. Another name"),
        ("fsl-maml", "adapter", r"fsl-maml: a package with that name exists\. Another name"),
        (
            "fsl-glyphs",
            "episodes",
            r"fsl-glyphs: episodes 'glyphs' is offered by fsl-core .*\. Another name",
        ),
    ],
)
def test_names_are_checked(name: str, kind: str, message: str):
    with pytest.raises(PluginError, match=message):
        raise new_plugin(name, "--kind", kind).exception


def test_the_author_is_gits_or_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    (tmp_path / "gitconfig").write_text("[user]\n  name = Grace Hopper\n")
    assert new_plugin("fsl-one", "--kind", "adapter").exit_code == 0
    (tmp_path / "gitconfig").write_text("")
    assert new_plugin("fsl-two", "--kind", "adapter").exit_code == 0
    assert "Grace Hopper" in Path("fsl-one", "LICENSE").read_text()
    assert "The authors" in Path("fsl-two", "LICENSE").read_text()


def test_without_copier_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(
        PluginError, match=r"copier is not installed\. pip install 'fsl-core\[templates\]'"
    ):
        raise new_plugin("fsl-one", "--kind", "adapter").exception

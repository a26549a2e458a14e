"""What a release needs: names, versions and ranges; the list of plugins and its page; the workflow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fsl_core.hooks.known import PACKAGES as OFFERED
from fsl_core.hooks.known import TRACKERS
from release.directory import PAGE, Listed, page, read_directory
from release.dist import PACKAGES, ROOT
from release.names import faults_of_all

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


def test_names_versions_and_ranges():
    assert list(faults_of_all()) == []


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    """Core and one plugin, ready to be released."""
    core, plugin = tmp_path / "core", tmp_path / "fsl-x"
    (plugin / "src" / "fsl_x").mkdir(parents=True)
    core.mkdir()
    (plugin / "src" / "fsl_x" / "__init__.py").touch()
    shared = 'version = "0.1.0"\nkeywords = ["fsl-plugin"]\n'
    (core / "pyproject.toml").write_text(f'[project]\nname = "fsl-core"\n{shared}')
    (plugin / "pyproject.toml").write_text(
        f'[project]\nname = "fsl-x"\n{shared}dependencies = ["fsl-core>=0.1,<0.2"]\n'
        '[project.entry-points.fsl]\nx = "fsl_x"\n'
    )
    for folder in (core, plugin):
        (folder / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 - 2030-01-02\n")
    return [core, plugin]


def test_a_release_that_may_be(packages: list[Path]):
    assert list(faults_of_all("v0.1.0", packages)) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("0.1.0", "0.1", "fsl-x: CHANGELOG.md: "),
        ('"0.1.0"', '"0.1.0-rc1"', "fsl-x: version 0.1.0-rc1. One as packages write it"),
        ('"0.1.0"', '"new"', "fsl-x: version new. One as packages write it"),
        ("fsl-plugin", "plugin", "fsl-x: keywords without fsl-plugin. "),
        ('"fsl-x"', '"fsl-y"', "fsl-y: in the folder fsl-x. A folder of its name"),
        ('"fsl-x"', '"fsl-y"', "fsl-y: no src/fsl_y/__init__.py. "),
        (">=0.1,<0.2", ">=0.2,<0.3", "fsl-x: range <0.3,>=0.2 of fsl-core, which is 0.1.0 here. "),
        (">=0.1,<0.2", ">=0.1", "fsl-x: range >=0.1 of fsl-core without an end. "),
        ("fsl-core>", "torch>", "fsl-x: range none of fsl-core, which is 0.1.0 here. "),
        ("entry-points.fsl", "entry-points.lsf", "fsl-x: no entry point in the group fsl. "),
    ],
)
def test_what_forbids_a_release(packages: list[Path], before: str, after: str, fault: str):
    file = packages[1] / "pyproject.toml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    if after == "0.1":
        (packages[1] / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert any(found.startswith(fault) for found in faults_of_all("v0.1.0", packages))


def test_the_tag_is_the_version_of_core(packages: list[Path]):
    told = "fsl-core: version 0.1.0, and the tag is v0.2.0. The tag v0.1.0"
    assert told in list(faults_of_all("v0.2.0", packages))
    (packages[0] / "CHANGELOG.md").write_text("## 0.1.0 (unreleased)\n")
    (found,) = faults_of_all("v0.1.0", packages)
    assert found.startswith("fsl-core: CHANGELOG.md: ## 0.1.0 (unreleased) for 0.1.0. ")


def test_the_page_is_that_of_the_list():
    assert PAGE.read_text(encoding="utf-8") == page(read_directory())


def test_every_package_of_ours_is_listed_with_what_it_adds():
    ours = {p.name: p for p in read_directory() if not p.source.startswith("https://")}
    assert sorted(ours) == [package.name for package in PACKAGES[1:]]
    for name, plugin in ours.items():
        kinds = {kind for kind, names in OFFERED.items() if name in names.values()}
        observes = name == "fsl-tensorboard" or name in TRACKERS.values()
        assert {*plugin.kinds} == kinds | ({"observer"} if observes else set())
        assert (ROOT / plugin.source / "pyproject.toml").is_file()
        assert not plugin.kit or "Contract" in (ROOT / plugin.kit).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "list.yaml: "),
        ("- {name: fsl-x}", "list.yaml: 0.kinds: Field required. As its top explains"),
        ("- {name: fsl-x, kinds: [adaptor], summary: s, source: s}", "list.yaml: 0.kinds.0: "),
        (
            "- {name: fsl-y, kinds: [adapter], summary: s, source: s}\n"
            "- {name: fsl-x, kinds: [adapter], summary: s, source: s}\n",
            "list.yaml: fsl-y, fsl-x. Each once, in the order of their names",
        ),
    ],
)
def test_a_list_that_is_wrong(tmp_path: Path, text: str, told: str):
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        read_directory(file)
    assert str(caught.value).startswith(told)


def test_a_strangers_plugin_has_links():
    report = "https://code.example/x/CONFORMANCE.md"
    listed = Listed(
        name="fsl-x", kinds=["adapter"], summary="s", source="https://code.example/x", kit=report
    )
    row = f"| [fsl-x](https://code.example/x) | adapter | s | [{report[8:]}]({report}) |"
    assert row in page([listed])


def test_the_command():
    ended = subprocess.run(
        [sys.executable, "-m", "release", "check", "v9.9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("fsl-core: version ")


def test_the_workflow_publishes_without_a_token():
    told = YAML(typ="safe").load(WORKFLOW.read_text(encoding="utf-8"))
    build, publish = told["jobs"]["build"], told["jobs"]["publish"]
    assert told["on"] == {"push": {"tags": ["v*"]}}
    assert told["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert (publish["needs"], publish["environment"]) == ("build", "pypi")
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert '.venv/bin/python -m release check "$GITHUB_REF_NAME"' in commands
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(re.search(rf"^{re.escape(t)}:", makefile, re.MULTILINE) for t in targets)
    assert "secrets." not in WORKFLOW.read_text(encoding="utf-8")
    assert "run" not in {key for step in publish["steps"] for key in step}

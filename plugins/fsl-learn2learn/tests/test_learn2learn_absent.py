"""The plugin where learn2learn is absent, and how it comes in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fsl_core.errors import PluginError
from fsl_core.hooks.loader import load
from fsl_core.testing import tiny_task
from fsl_core.testing.tiny import TinyBackbone
from fsl_learn2learn import install, library

COMMAND = r"To install it: python -m fsl_learn2learn\.install$"


@pytest.fixture(autouse=True)
def l2l():
    """These tests need no learn2learn."""


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    library.learn2learn.cache_clear()
    yield
    library.learn2learn.cache_clear()


@pytest.mark.usefixtures("absent")
def test_every_component_says_what_to_do():
    loaded = load()
    (plugin,) = [p for p in loaded.plugins if p.distribution == "fsl-learn2learn"]
    assert plugin.status == "ok"
    assert {kind for kind, _ in plugin.offers} == {"episodes", "backbone", "adapter"}
    for kind, name in plugin.offers:
        component = loaded.catalogue.get(kind, name)
        with pytest.raises(
            PluginError,
            match=r"^fsl-learn2learn: learn2learn cannot be imported \(.+\)\. " + COMMAND,
        ):
            component.build(component.options(name=name), task=tiny_task(), backbone=TinyBackbone())


def test_registering_is_quick_and_importing_is_quiet():
    """Neither learn2learn nor gym nor torchvision is imported by the plugin; learn2learn's import
    then prints nothing."""
    code = "import sys, fsl_learn2learn; print([m for m in ('learn2learn', 'gym', 'torchvision') if m in sys.modules])"
    if install.installed("learn2learn"):
        code += "; from fsl_learn2learn.library import learn2learn; learn2learn()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == "[]\n"


def test_qpth_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "learn2learn", lambda: None)
    for name in ("qpth", "qpth.qp"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        PluginError,
        match=r"qpth, which MetaOptNet needs, .*python -m fsl_learn2learn\.install --metaoptnet$",
    ):
        library.require_qpth()


class TestInstall:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What would be run, instead of running it."""
        seen: list[list[str]] = []

        def run(command, env, **_):
            seen.append(command[6:])
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(install, "installed", lambda name: None)
        return seen

    def test_the_imports_and_then_a_build_with_cython_elsewhere(self, commands):
        assert install.main(["-c", "constraints.txt"]) == 0
        imports, tools, build = commands
        assert imports == [
            "-c",
            "constraints.txt",
            "gym",
            "requests",
            "scipy",
            "tqdm",
            "torchvision",
        ]
        assert tools[0] == "--target"
        assert "cython" in tools
        assert build[:2] == ["-c", "constraints.txt"]
        assert build[-1] == "learn2learn==0.2.0"
        assert {"--no-deps", "--no-build-isolation", "--use-pep517"} < set(build)

    def test_nothing_is_built_twice(self, commands, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(install, "installed", lambda name: install.VERSION)
        assert install.main([]) == 0
        assert len(commands) == 1

    def test_qpth_without_its_old_numpy(self, commands):
        assert install.main(["--metaoptnet"]) == 0
        assert commands[-2:] == [["cvxpy"], ["--no-deps", "qpth==0.0.18"]]

    def test_a_failure_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ):
        lines = "Building wheel\n  x86_64-linux-gnu-gcc: command not found\n  ERROR: Failed to build learn2learn\n"
        monkeypatch.setattr(
            subprocess,
            "run",
            lambda command, **_: subprocess.CompletedProcess(command, 1, "", lines),
        )
        assert install.main([]) == 1
        expected = "fsl-learn2learn: learn2learn 0.2.0 was not installed: ERROR: Failed to build learn2learn\n"
        assert capsys.readouterr().err == expected

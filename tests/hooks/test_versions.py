"""Plugins made for an older and for a newer hook API than the one that loads them:
docs/compatibility.md."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fsl_core.hooks import registry as registry_module
from fsl_core.hooks import specs
from fsl_core.hooks.registry import Plugin, Registry, load

HERE = Path(__file__).parent


def load_api(*names: str) -> tuple[Registry, dict[str, Plugin], dict[str, ModuleType]]:
    files = [HERE / f"plugin_for_{name}.py" for name in names]
    registry = load(entry_points=False, files=files)
    plugins = {plugin.name.removeprefix("plugin_for_"): plugin for plugin in registry.plugins}
    modules = {
        name: registry_module.sys.modules.get(f"fsl_plugin_file_plugin_for_{name}")
        for name in names
    }
    return registry, plugins, modules


@pytest.fixture
def later_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """This fsl-core with the hooks of `next_specs.py`."""
    spec = importlib.util.spec_from_file_location("next_specs", HERE / "next_specs.py")
    later = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(later)
    monkeypatch.setattr(registry_module, "specs", later)


@pytest.mark.usefixtures("later_core")
def test_an_older_plugin_works_and_is_told_what_is_deprecated():
    registry, plugins, modules = load_api("api_1")
    old = plugins["api_1"]
    assert (old.status, old.hook_api) == ("ok", 1)
    lines = inspect.getsource(modules["api_1"]).splitlines()
    first, second = [
        number for number, line in enumerate(lines, start=1) if line == "@fsl.hookimpl"
    ]
    gone = "is deprecated since hook API 3, gone in 5."
    assert sorted(old.notes) == [
        f"fsl_evaluated: argument 'split' {gone} result['split'] (plugin_for_api_1.py:{second})",
        f"fsl_step_finished {gone} fsl_batch_finished (plugin_for_api_1.py:{first})",
    ]
    registry.hook.fsl_step_finished(run=None, step=4, metrics={})
    registry.hook.fsl_evaluated(run=None, split="test", result={})
    assert modules["api_1"].seen == [4, "test"]


def test_a_newer_plugin_is_refused_with_the_command_to_upgrade_core():
    _, plugins, _ = load_api("api_3", "api_1")
    assert plugins["api_3"].status == "failed"
    assert (
        plugins["api_3"].reason
        == f"needs hook API 3, this fsl-core has {specs.HOOK_API}. pip install --upgrade fsl-core"
    )
    assert (plugins["api_1"].status, plugins["api_1"].notes) == ("ok", [])


@pytest.mark.usefixtures("later_core")
def test_a_newer_plugin_is_welcome_once_core_is_new_enough():
    _, plugins, _ = load_api("api_3")
    assert (plugins["api_3"].status, plugins["api_3"].hook_api, plugins["api_3"].notes) == (
        "ok",
        3,
        [],
    )


def test_a_plugin_can_work_with_older_and_newer_hooks(request: pytest.FixtureRequest):
    registry, plugins, modules = load_api("apis_1_to_3")
    assert (plugins["apis_1_to_3"].status, plugins["apis_1_to_3"].notes) == ("ok", [])
    registry.hook.fsl_run_started(run=None)
    assert modules["apis_1_to_3"].seen == [("started", None)]
    request.getfixturevalue("later_core")
    registry, plugins, modules = load_api("apis_1_to_3")
    assert plugins["apis_1_to_3"].status == "ok"
    registry.hook.fsl_batch_finished(run=None, step=2, metrics={}, episodes=None)
    assert modules["apis_1_to_3"].seen == [("batch", 2)]


@pytest.mark.parametrize("version", ["2", 1.0, True, 0, None])
def test_a_version_that_is_none(version: object):
    loaded = load(entry_points=False, modules=[_module("odd", FSL_HOOK_API=version)]).plugins[-1]
    assert loaded.status == "failed"
    assert loaded.reason == f"FSL_HOOK_API is {version!r}. The number of a hook API, such as 1"


@pytest.mark.parametrize(
    ("requires", "notes"),
    [
        (
            ["fsl-core>=0.0.1,<0.0.9"],
            ["asks for fsl-core<0.0.9,>=0.0.1, and this is 0.1.0. pip install --upgrade fsl-old"],
        ),
        (["fsl-core>=0.1,<0.2", "numpy>99", "not a requirement !"], []),
        (["fsl-core>99; extra == 'testing'"], []),
        (None, []),
    ],
)
def test_a_distribution_made_for_another_core(
    monkeypatch: pytest.MonkeyPatch, requires: list[str] | None, notes: list[str]
):
    distribution = SimpleNamespace(name="fsl-old", version="0.3", requires=requires)
    entry = SimpleNamespace(name="old", dist=distribution, load=lambda: _module("old"))
    monkeypatch.setattr(registry_module.metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr(registry_module.metadata, "version", lambda name: "0.1.0")
    loaded = load().plugins[-1]
    assert (loaded.origin, loaded.notes) == ("fsl-old 0.3", notes)


def test_damaged_metadata_breaks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "fsl_half-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text("[fsl]\nhalf = fsl_half\n")
    monkeypatch.syspath_prepend(tmp_path)
    half = next(plugin for plugin in load().plugins if plugin.name == "half")
    assert (half.status, half.reason) == (
        "failed",
        "ModuleNotFoundError: No module named 'fsl_half'",
    )


def _module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made

"""Plugins of every kind of brokenness: each is named with its reason, none breaks another."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import fsl_core as fsl
from fsl_core.errors import PluginError
from fsl_core.hooks.loader import Loaded, load, plugin_files
from fsl_core.hooks.plugin import Plugin


class Even(fsl.TaskWeighting):
    """All the same."""

    name = "even"

    def weigh(self, outcomes):
        return outcomes.losses * 0 + 1 / len(outcomes.losses)


def module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


def offers(*factories: object, hook: str = "fsl_register_weightings"):
    def implementation(register):
        for factory in factories:
            register(factory)

    implementation.__name__ = hook
    return {hook: fsl.hookimpl(implementation)}


def load_modules(*modules: ModuleType, **options: object) -> tuple[Loaded, dict[str, Plugin]]:
    loaded = load(entry_points=False, modules=modules, **options)
    return loaded, {plugin.name: plugin for plugin in loaded.plugins}


def test_a_plugin_is_found_with_its_hooks_and_offers():
    loaded, plugins = load_modules(module("good", **offers(Even)))
    assert plugins["good"].status == "ok"
    assert plugins["good"].hooks == ["fsl_register_weightings"]
    assert plugins["good"].offers == [("weighting", "even")]
    assert loaded.catalogue.get("weighting", "even").factory is Even


def test_builtins_enter_by_the_same_hooks_and_can_be_left_out():
    loaded, plugins = load_modules(no_plugin=["uniform"])
    assert plugins["uniform"].status == "disabled"
    assert plugins["conv4"].offers == [("backbone", "conv4")]
    with pytest.raises(PluginError, match="weighting 'uniform': no installed plugin offers it"):
        loaded.catalogue.get("weighting", "uniform")


def test_every_builtin_offers_something():
    _, plugins = load_modules()
    assert len(plugins) > 8
    assert all(plugin.offers for plugin in plugins.values())


def test_a_misspelled_hook_is_the_plugins_error():
    _, plugins = load_modules(module("typo", **offers(Even, hook="fsl_register_weighting")))
    assert plugins["typo"].status == "failed"
    assert plugins["typo"].reason == (
        "implements unknown hook 'fsl_register_weighting'. Did you mean 'fsl_register_weightings'?"
    )


def test_a_wrong_hook_argument_is_the_plugins_error():
    @fsl.hookimpl
    def fsl_register_weightings(registrar): ...

    _, plugins = load_modules(module("argument", fsl_register_weightings=fsl_register_weightings))
    assert plugins["argument"].status == "failed"
    assert "registrar" in plugins["argument"].reason


def test_duplicates_name_both_and_neither_wins():
    loaded, plugins = load_modules(module("one", **offers(Even)), module("two", **offers(Even)))
    assert plugins["two"].status == "failed"
    assert plugins["two"].reason.startswith(
        "weighting 'even': offered by both one and two. Disable one"
    )
    with pytest.raises(
        PluginError, match="weighting 'even': offered by both one and two. Disable one"
    ):
        loaded.catalogue.get("weighting", "even")
    assert "even" not in loaded.catalogue.names("weighting")


def test_a_failing_plugin_is_rolled_back_and_breaks_nothing():
    def fsl_register_weightings(register):
        register(Even)
        raise ImportError("no module named 'moon'")

    loaded, plugins = load_modules(
        module("broken", fsl_register_weightings=fsl.hookimpl(fsl_register_weightings)),
        module("good"),
    )
    assert plugins["broken"].reason == "ImportError: no module named 'moon'"
    assert plugins["broken"].offers == []
    assert plugins["good"].status == "ok"
    assert loaded.catalogue.names("weighting") == ["uniform"]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (object(), "A class or function with a `name`"),
        (type("NoName", (), {}), "A class or function with a `name`"),
        (
            type("Stars", (), {"name": "stars", "__init__": lambda self, **options: None}),
            "argument *options",
        ),
        (
            type("Named", (), {"name": "named", "__init__": lambda self, name="x": None}),
            "argument 'name'. Another word",
        ),
    ],
)
def test_what_cannot_be_registered(factory: object, reason: str):
    _, plugins = load_modules(module("odd", **offers(factory)))
    assert plugins["odd"].status == "failed"
    assert reason in plugins["odd"].reason


@pytest.mark.parametrize("kind", ["wrapper", "hookwrapper"])
def test_a_hook_that_wraps_others_is_refused(kind: str):
    @fsl.hookimpl(**{kind: True})
    def fsl_step_finished(step):
        yield

    _, plugins = load_modules(module("wrapping", fsl_step_finished=fsl_step_finished))
    assert plugins["wrapping"].status == "failed"
    assert plugins["wrapping"].reason == (
        "fsl_step_finished wraps the other plugins' calls. A plain function: hooks offer or observe"
    )


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("FSL_DISABLED_PLUGINS", "other,good", "disabled"),
        ("FSL_DISABLED_PLUGINS", "other", "ok"),
        ("FSL_LOAD_PLUGINS", "good", "ok"),
        ("FSL_LOAD_PLUGINS", "other", "disabled"),
        ("FSL_LOAD_PLUGINS", "", "disabled"),
    ],
)
def test_switches_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, status: str
):
    monkeypatch.setenv(variable, value)
    _, plugins = load_modules(module("good", **offers(Even)))
    assert plugins["good"].status == status
    assert plugins["good"].reason == ("" if status == "ok" else variable)
    assert plugins["uniform"].status == "ok"


def test_leaving_out_a_plugin_that_is_not_there():
    with pytest.raises(
        PluginError,
        match="--no-plugin unifrom: there is no plugin with that name. Did you mean 'uniform'?",
    ):
        load_modules(no_plugin=["unifrom"])


def test_one_file_plugins(tmp_path: Path):
    text = """
import fsl_core as fsl
from fsl_core.config.options import Component

class W(fsl.TaskWeighting):
    name = "w"

@fsl.hookimpl
def fsl_register_weightings(register):
    register(W)
"""
    (tmp_path / "fslplugin.py").write_text(text)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.py").write_text(
        "from fsl_core import hookimpl\nimport nowhere_to_be_found"
    )
    files = plugin_files(tmp_path / "recipe.yaml", tmp_path / "more")
    loaded = load(entry_points=False, files=files)
    assert "w" in loaded.catalogue.names("weighting")
    broken = next(p for p in loaded.plugins if p.name == "broken")
    assert broken.reason == "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    with pytest.raises(PluginError, match="no such folder"):
        plugin_files(None, tmp_path / "absent")


def test_a_plugin_beside_the_recipe_is_taken_once(tmp_path: Path):
    (tmp_path / "fslplugin.py").write_text("from fsl_core import hookimpl")
    assert plugin_files(tmp_path / "recipe.yaml", Path()) == [tmp_path / "fslplugin.py"]


def test_only_files_with_hooks_are_plugins_and_none_is_executed(tmp_path: Path):
    hook = "@fsl.hookimpl\ndef fsl_step_finished(step): ..."
    texts = {
        "a_plugin.py": f"import fsl_core as fsl\n{hook}",
        "b_renamed.py": "from fsl_core import hookimpl as h",
        "c_broken.py": "from fsl_core import hookimpl\nclass Broken(:",
        "script.py": "# hookimpl\nraise SystemExit('executed')",
        "words.py": "'hookimpl'",
        "torn.py": "class Broken(:",
        "binary.py": b"\x00\xff",
        "test_plugin.py": f"import fsl_core as fsl\n{hook}",
        "plugin_test.py": f"import fsl_core as fsl\n{hook}",
        "conftest.py": f"import fsl_core as fsl\n{hook}",
        "setup.py": "from fsl_core import hookimpl",
        "notes.txt": "hookimpl",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    found = [file.name for file in plugin_files(None, tmp_path)]
    assert found == ["a_plugin.py", "b_renamed.py", "c_broken.py"]
    plugins = {
        p.name: p for p in load(entry_points=False, files=plugin_files(None, tmp_path)).plugins
    }
    assert plugins["a_plugin"].status == "ok"
    assert plugins["c_broken"].reason.startswith("SyntaxError: invalid syntax (")


def test_strict_mode_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="unknown hook"):
        load_modules(module("typo", **offers(Even, hook="fsl_register_weighting")))

"""Names and what they stand for; a name that is missing is explained."""

from __future__ import annotations

import pytest

import fsl_core as fsl
from fsl_core.config.options import Component
from fsl_core.errors import PluginError
from fsl_core.hooks.catalogue import Catalogue, collected
from fsl_core.hooks.plugin import Plugin


class Even(fsl.TaskWeighting):
    """All the same."""

    name = "even"

    def weigh(self, outcomes):
        return outcomes.losses * 0 + 1 / len(outcomes.losses)


def even(origin: str, name: str = "even") -> Component:
    return Component("weighting", name, Even, origin)


def test_what_is_added_is_found_by_kind_and_name():
    catalogue = Catalogue()
    catalogue.add([even("one 1.0"), even("one 1.0", "aligned")])
    assert catalogue.names("weighting") == ["aligned", "even"]
    assert [c.name for c in catalogue.components("weighting")] == ["aligned", "even"]
    assert catalogue.get("weighting", "even").factory is Even
    assert catalogue.names("adapter") == []


def test_a_missing_name_is_answered_with_the_nearest():
    catalogue = Catalogue()
    catalogue.add([even("one 1.0")])
    with pytest.raises(
        PluginError,
        match="weighting 'evn': no installed plugin offers it. Did you mean 'even'?",
    ):
        catalogue.get("weighting", "evn")


def test_what_was_not_loaded_is_named_with_its_reason():
    broken = Plugin("odd", "fsl-odd", "1.0", status="failed", reason="ImportError: moon")
    catalogue = Catalogue([broken, Plugin("good", "fsl-good", "1.0")])
    with pytest.raises(PluginError, match=r"Not loaded: odd \(ImportError: moon\)\. "):
        catalogue.get("weighting", "even")


def test_a_known_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        PluginError, match="adapter 'maml': no installed plugin offers it. pip install fsl-maml"
    ):
        Catalogue().get("adapter", "maml")


def test_a_known_package_that_failed_gives_its_reason():
    reason = "ImportError: No module named 'higher'"
    plugins = [Plugin("maml", "fsl-maml", "0.1.0", status="failed", reason=reason)]
    with pytest.raises(PluginError, match=f"fsl-maml 0.1.0 would, but it is failed: {reason}"):
        Catalogue(plugins).get("adapter", "maml")


def test_a_name_that_two_offer_stands_for_neither():
    catalogue = Catalogue()
    catalogue.add([even("one")])
    told = (
        "weighting 'even': offered by both one and two. "
        "Disable one with --no-plugin or FSL_DISABLED_PLUGINS"
    )
    with pytest.raises(PluginError, match=told):
        catalogue.add([even("two", "odd"), even("two")])
    with pytest.raises(PluginError, match=told):
        catalogue.get("weighting", "even")
    assert catalogue.names("weighting") == []


@pytest.mark.parametrize(
    ("factory", "name", "found"),
    [(Even, None, "even"), (Even, "flat", "flat"), (lambda: None, "made", "made")],
)
def test_the_name_is_the_factorys_or_the_arguments(factory: object, name: str, found: str):
    (component,) = collected(lambda register: register(factory, name), "weighting", "one 1.0")
    assert (component.kind, component.name, component.origin) == ("weighting", found, "one 1.0")
    assert component.factory is factory


@pytest.mark.parametrize("factory", [3, lambda: None])
def test_what_has_no_name_or_cannot_be_called_is_refused(factory: object):
    with pytest.raises(PluginError, match=r"registered .* as weighting\. A class or function with"):
        collected(lambda register: register(factory), "weighting", "one 1.0")

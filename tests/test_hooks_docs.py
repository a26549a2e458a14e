"""Every hook is documented under its exact signature, and has a plugin that implements it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fsl_core.hooks import specs

ROOT = Path(__file__).parent.parent
HOOKS = [function for name, function in vars(specs).items() if name.startswith("fsl_")]
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")


def test_there_are_fourteen_hooks():
    assert len(HOOKS) == 14
    assert PAGE.count("\n## fsl_") == 14


def section(name: str) -> str:
    """The text under a hook's heading, on one line."""
    return " ".join(
        re.search(rf"\n## {name}\(.*?\)\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL).group(1).split()
    )


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_hook_is_documented(hook):
    """Heading: the exact signature. First words: since when, and the sentence of the docstring that
    says when it is called."""
    arguments = list(inspect.signature(hook).parameters)
    assert f"\n## {hook.__name__}({', '.join(arguments)})\n" in PAGE
    assert f"Since hook API {hook.since}." in hook.__doc__
    called = re.match(r"Called .*?(?=[,.:])", inspect.getdoc(hook)).group(0)
    assert (
        section(hook.__name__).replace("`", "").startswith(f"Since hook API {hook.since}. {called}")
    )
    assert re.findall(r":param (\w+):", hook.__doc__) == arguments
    for argument in arguments:
        assert argument in ("register", "run", "split") or f"`{argument}`" in section(hook.__name__)
    if "split" in arguments:
        assert all(f"`{split}`" in section(hook.__name__) for split in ("validation", "test"))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_hook_has_an_example(hook):
    example = ROOT / hook.__doc__.split("Example: ")[1].split()[-1].rstrip(".").rpartition(" ")[2]
    assert f"def {hook.__name__}(" in example.read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_hook_since_is_a_hook_api_there_has_been(hook):
    assert 1 <= hook.since <= specs.HOOK_API


def test_the_page_names_the_hook_api_version():
    assert f"Hook API version: {specs.HOOK_API}." in PAGE


def test_compatibility_says_with_which_release_each_hook_api_came():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    told = re.findall(r"Hook API (\d+) came with fsl-core \d+\.\d+", page)
    assert told == [str(version) for version in range(1, specs.HOOK_API + 1)]

"""Every hook is documented under its exact signature, and has a plugin that implements it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fsl_core.hooks import specs

ROOT = Path(__file__).parent.parent
HOOKS = [function for name, function in vars(specs).items() if name.startswith("fsl_")]
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")


def test_there_are_eight_hooks():
    assert len(HOOKS) == 8
    assert PAGE.count("\n## fsl_") == 8


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_hook_is_documented(hook):
    arguments = ", ".join(inspect.signature(hook).parameters)
    assert f"\n## {hook.__name__}({arguments})\n" in PAGE
    assert "Since hook API" in hook.__doc__
    example = ROOT / hook.__doc__.split("Example: ")[1].split()[-1].rstrip(".").rpartition(" ")[2]
    assert f"def {hook.__name__}(" in example.read_text(encoding="utf-8")


def test_the_page_names_the_hook_api_version():
    assert f"Hook API version: {specs.HOOK_API}." in PAGE

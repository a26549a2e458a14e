"""A constructor's signature as the schema of its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import fsl_core as fsl
from fsl_core.config.options import Component


def test_a_module_without_a_constructor_has_no_options_after_torch_compile(
    monkeypatch: pytest.MonkeyPatch,
):
    """torch.compile replaces nn.Module.__init__ by a function of another module."""

    def patched_init(self, *args, **kwargs):
        original(self, *args, **kwargs)

    class Plain(fsl.Adapter):
        name = "plain"

    original = torch.nn.Module.__init__
    monkeypatch.setattr(torch.nn.Module, "__init__", patched_init)
    assert list(Component("adapter", "plain", Plain, "test").options.model_fields) == ["name"]


def options_of(factory: Callable[..., Any]) -> list[str]:
    return list(Component("adapter", "plain", factory, "test").options.model_fields)


def test_the_options_of_a_class_are_made_once_until_it_is_changed_in_place():
    """IPython's autoreload changes the classes of a module that was edited."""

    class Plain:
        def __init__(self, task, backbone, width: int = 1):
            pass

    first = Component("adapter", "plain", Plain, "test").options
    assert Component("adapter", "plain", Plain, "another").options is first

    def changed(self, task, backbone, depth: int = 2):
        pass

    Plain.__init__ = changed
    assert options_of(Plain) == ["name", "depth"]


def test_a_factory_needs_no_hash():
    @dataclass(frozen=True)
    class Factory:
        made: list[int] = field(default_factory=list)

        def __call__(self, task, backbone, width: int = 1):
            pass

    assert options_of(Factory()) == ["name", "width"]
    with pytest.raises(TypeError, match=r"adapter 'plain': argument \*args\. Every option"):
        options_of(lambda *args: None)

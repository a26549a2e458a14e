"""A constructor's signature as the schema of its options."""

from __future__ import annotations

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

"""What became of one plugin, and how a fault of it is put into words."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import Literal

from fsl_core.config.options import Kind
from fsl_core.errors import PluginError
from fsl_core.hooks import specs

SLOW = 1.0
"""Seconds to load from which a plugin counts as slow."""


@dataclass
class Plugin:
    """What became of one plugin.

    name: entry-point, file or module name.
    distribution: the package, or the path of a one-file plugin.    version: of the package.
    reason: why it is not loaded; empty where it is.
    hook_api: the oldest hook API that it can work with; the present one where it says nothing.
    hooks: those that it implements.    offers: (kind, name) of what it registered.
    trackers: names by which FSL_TRACKER switches it on.
    seconds: to import and register it; the first to import a library pays for it, except for
        torch, which core imports.
    notes: what else to tell about it: printed text, global state that it changed, deprecated
        hooks, a core that it was not made for.
    """

    name: str
    distribution: str
    version: str
    status: Literal["ok", "disabled", "failed"] = "ok"
    reason: str = ""
    hook_api: int = specs.HOOK_API
    hooks: list[str] = field(default_factory=list)
    trackers: tuple[str, ...] = ()
    offers: list[tuple[Kind, str]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def title(self) -> str:
        return f"plugin {self.name} ({self.origin})"

    @property
    def slow(self) -> bool:
        return self.seconds > SLOW


def reason_of(error: BaseException) -> str:
    """One line that says what a plugin raised."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r}). A plugin that raises what is wrong"
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{text} ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else text


def strict() -> bool:
    """Whether what a plugin raises ends the command, with its traceback."""
    return bool(os.environ.get("FSL_STRICT_PLUGINS"))


def traced() -> bool:
    """Whether each load and each hook call is written to standard error."""
    return bool(os.environ.get("FSL_TRACE_PLUGINS"))


def trace(text: str) -> None:
    sys.stderr.write(f"fsl trace: {text}\n")

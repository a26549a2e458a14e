"""Who is told what happens in a run, and what becomes of an observer that raises."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pluggy

from fsl_core.errors import PluginWarning
from fsl_core.hooks.known import TRACKERS
from fsl_core.hooks.plugin import Plugin, reason_of, strict, trace, traced
from fsl_core.text import printable, suggest

TRACKER = "FSL_TRACKER"
"""Environment variable with the names of trackers, such as `mlflow,wandb`."""

# From warnings.warn up to whoever called `tell`: _warn, _drop, _tell_one, tell, and that caller.
_CALLER = 5


class Observers:
    """Everyone who implements an observer hook: plugins, and parts of the program itself.

    warn: is told once about each plugin whose observer has raised.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.warn: Callable[[str], None] = _warn
        self._manager = manager
        self._by_title: dict[str | None, Plugin] = {}

    @classmethod
    def nobody(cls) -> Observers:
        """Observers of a process that has nothing to tell: another one tells it."""
        return cls(pluggy.PluginManager("nobody"))

    def add(self, observer: object) -> None:
        """Add an observer of the program itself, such as a progress bar.

        What it raises is raised.
        """
        self._manager.register(observer)

    def add_plugin(self, title: str | None, plugin: Plugin) -> None:
        """Say whose observers the manager has registered under this title."""
        self._by_title[title] = plugin

    def unknown_trackers(self) -> Iterator[str]:
        """A line for each name in FSL_TRACKER by which no loaded plugin tracks runs."""
        known = {name for plugin in self._by_title.values() for name in plugin.trackers}
        for name in dict.fromkeys(os.environ.get(TRACKER, "").replace(",", " ").split()):
            if name not in known:
                hint = suggest(name, {*known, *TRACKERS}, label="Trackers")
                if name in TRACKERS:
                    hint = f"pip install {TRACKERS[name]}, or let it load"
                told = f"{TRACKER}={printable(name)}: no plugin tracks runs under this name"
                yield f"{told}, so nothing does. {hint}"

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call this hook of every observer, the one added last first, as pluggy does."""
        caller = getattr(self._manager.hook, hook, None)  # None: nobody has offered any hook
        for impl in reversed(caller.get_hookimpls() if caller else []):
            self._tell_one(hook, impl, arguments)

    def _tell_one(self, hook: str, impl: pluggy.HookImpl, arguments: dict[str, Any]) -> None:
        plugin = self._by_title.get(impl.plugin_name)
        started = time.perf_counter()
        outcome = ""
        try:
            _call(impl, arguments)
        except (Exception, SystemExit) as error:
            outcome = f", {reason_of(error)}"
            if plugin is None or strict():
                raise
            self._drop(plugin, hook, impl.plugin, error)
        finally:
            if traced():
                who = plugin.title if plugin else type(impl.plugin).__name__
                seconds = time.perf_counter() - started
                trace(f"{hook}({_shown(arguments)}) of {who}: {1000 * seconds:.2f} ms{outcome}")

    def _drop(
        self, plugin: Plugin, hook: str, implementation: object, error: BaseException
    ) -> None:
        """Go on without an observer that raises: a run is worth more than its watchers."""
        self._manager.unregister(implementation)
        fault = f"{hook} raised {reason_of(error)}"
        plugin.notes.append(f"{fault}. It was left out of the rest of the run")
        self.warn(
            f"{plugin.title}: {fault}. It is left out from here on and the run goes on; "
            "FSL_STRICT_PLUGINS=1 ends the run with the traceback"
        )


def _call(impl: pluggy.HookImpl, arguments: dict[str, Any]) -> None:
    """With those arguments that this implementation asks for."""
    wanted = (*impl.argnames, *impl.kwargnames)
    impl.function(**{name: arguments[name] for name in wanted if name in arguments})


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "run")


def _warn(text: str) -> None:
    warnings.warn(text, PluginWarning, stacklevel=_CALLER)

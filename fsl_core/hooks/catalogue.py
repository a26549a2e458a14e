"""Names and what they stand for: every component that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fsl_core.config.options import Component, Kind
from fsl_core.errors import PluginError
from fsl_core.hooks.known import PACKAGES
from fsl_core.hooks.plugin import Plugin
from fsl_core.hooks.specs import Register
from fsl_core.text import suggest


class Catalogue:
    """Components by kind and name.

    plugins: all that were looked at, so that an error can say why a name is missing.
    """

    def __init__(self, plugins: Sequence[Plugin] = ()) -> None:
        self._plugins = plugins
        self._components: dict[tuple[Kind, str], Component] = {}
        self._conflicts: dict[tuple[Kind, str], str] = {}

    def names(self, kind: Kind) -> list[str]:
        return sorted(
            name for k, name in self._components if k == kind and (k, name) not in self._conflicts
        )

    def components(self, kind: Kind) -> list[Component]:
        return [self._components[kind, name] for name in self.names(kind)]

    def get(self, kind: Kind, name: str) -> Component:
        """The component of this name. PluginError says what to install, enable or spell."""
        if (kind, name) in self._conflicts:
            raise PluginError(self._conflicts[kind, name])
        if (kind, name) not in self._components:
            raise PluginError(
                f"{kind} {name!r}: no installed plugin offers it. {self._remedy(kind, name)}"
            )
        return self._components[kind, name]

    def add(self, components: Iterable[Component]) -> None:
        """Take what one plugin offers: all of it, or nothing and a PluginError.

        A name that is taken becomes unusable: neither of the two is more right than the other.
        """
        offered = {(component.kind, component.name): component for component in components}
        for component in offered.values():
            self._refuse_duplicate(component)
        self._components |= offered

    def _refuse_duplicate(self, component: Component) -> None:
        key = (component.kind, component.name)
        if taken := self._components.get(key):
            self._conflicts[key] = (
                f"{component.kind} {component.name!r}: offered by both {taken.origin} and "
                f"{component.origin}. Disable one with --no-plugin or FSL_DISABLED_PLUGINS"
            )
            raise PluginError(self._conflicts[key])

    def _remedy(self, kind: Kind, name: str) -> str:
        package = PACKAGES.get(kind, {}).get(name)
        if package is None:
            left_out = [f"{p.name} ({p.reason})" for p in self._plugins if p.status != "ok"]
            hint = suggest(name, self.names(kind), label="Installed")
            return f"Not loaded: {', '.join(left_out)}. {hint}" if left_out else hint
        for plugin in self._plugins:
            if plugin.distribution == package and plugin.status != "ok":
                return f"{plugin.origin} would, but it is {plugin.status}: {plugin.reason}"
        return f"pip install {package}"


def collected(offer: Callable[[Register], None], kind: Kind, origin: str) -> list[Component]:
    """What is registered while `offer` runs. PluginError or TypeError where it cannot be used."""
    found: list[Component] = []

    def register(factory: Any, name: str | None = None) -> None:
        name = name or getattr(factory, "name", None)
        if not callable(factory) or not isinstance(name, str):
            raise PluginError(
                f"registered {factory!r} as {kind}. A class or function with a `name`"
            )
        component = Component(kind, name, factory, origin)
        # A signature that is not a schema is the plugin's fault: found here, not in a recipe.
        _ = component.options
        found.append(component)

    offer(register)
    return found

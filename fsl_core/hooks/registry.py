"""Finds plugins, lets each one offer its components, and keeps a failing one from breaking anything else."""

from __future__ import annotations

import ast
import os
import pkgutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from importlib import import_module, metadata
from pathlib import Path, PurePath
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pluggy
from packaging.requirements import InvalidRequirement, Requirement

from fsl_core.config.options import Component, Kind
from fsl_core.config.outer import OPTIMIZERS, SCHEDULES
from fsl_core.errors import PluginError, PluginWarning
from fsl_core.hooks import specs
from fsl_core.hooks.containment import contained
from fsl_core.hooks.known import PACKAGES
from fsl_core.hooks.trust import PluginSource, RecordedPlugins, granted, remember
from fsl_core.text import suggest

GROUP = "fsl"
BUILTIN = "fsl_core.builtin"
REGISTRATION_HOOKS: dict[str, Kind] = {
    "fsl_register_episodes": "episodes",
    "fsl_register_backbones": "backbone",
    "fsl_register_adapters": "adapter",
    "fsl_register_weightings": "weighting",
}
SLOW = 1.0
"""Seconds to load from which a plugin is called slow."""


@dataclass
class Plugin:
    """What became of one plugin.

    name: entry-point, file or module name.    origin: distribution and version, or the file.
    hook_api: the oldest hook API that it can do with; the present one where it says nothing.
    offers: (kind, name) of what it registered; empty unless status is `ok`.
    seconds: to import and register it; the first to import a library pays for it, except for torch, which core imports.
    notes: what else to tell of it: printed text, global state that it changed, deprecated hooks, a core it was not made for.
    """

    name: str
    distribution: str
    version: str
    status: Literal["ok", "disabled", "failed"] = "ok"
    reason: str = ""
    hook_api: int = specs.HOOK_API
    hooks: list[str] = field(default_factory=list)
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


class Registry:
    """Every component that can be named, and every plugin with its status. Made by `load`.

    hook: `hook.fsl_step_finished(run=run, ...)` calls that observer hook of every loaded plugin.
    warn: is told once of each observer plugin that has raised.
    files: sha256 of each one-file plugin that was read, by its path, for the records of a run.
    """

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self.files: dict[str, str] = {}
        self.hook = SimpleNamespace(
            **{
                name: partial(self._notify, name)
                for name in _hook_names()
                if name not in REGISTRATION_HOOKS
            }
        )
        self.warn: Callable[[str], None] = lambda text: warnings.warn(
            text, PluginWarning, stacklevel=4
        )
        self._components: dict[tuple[Kind, str], Component] = {}
        self._conflicts: dict[tuple[Kind, str], str] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(specs)
        self._by_title: dict[str, Plugin] = {}
        self._traced = bool(os.environ.get("FSL_TRACE_PLUGINS"))
        for kind, table in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            for name, factory in table.items():
                self._components[kind, name] = Component(kind, name, factory, "fsl-core")

    def observe(self, observer: object) -> None:
        """Add an observer of the program itself, such as a progress bar; what it raises is raised."""
        self._manager.register(observer)

    def _notify(self, hook: str, **arguments: Any) -> None:
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            plugin = self._by_title.get(impl.plugin_name)
            started = time.perf_counter()
            outcome = ""
            try:
                impl.function(
                    **{
                        name: arguments[name]
                        for name in (*impl.argnames, *impl.kwargnames)
                        if name in arguments
                    }
                )
            except (Exception, SystemExit) as error:
                outcome = f", {_reason(error)}"
                if plugin is None or os.environ.get("FSL_STRICT_PLUGINS"):
                    raise
                self._drop(plugin, hook, impl.plugin, error)
            finally:
                if self._traced:
                    given = ", ".join(
                        f"{name}={value!r}" for name, value in arguments.items() if name != "run"
                    )
                    milliseconds = 1000 * (time.perf_counter() - started)
                    who = plugin.title if plugin else type(impl.plugin).__name__
                    _trace(f"{hook}({given}) of {who}: {milliseconds:.2f} ms{outcome}")

    def _drop(
        self, plugin: Plugin, hook: str, implementation: object, error: BaseException
    ) -> None:
        """Training goes on without an observer that raises: a run is worth more than what watches it."""
        self._manager.unregister(implementation)
        plugin.notes.append(
            f"{hook} raised {_reason(error)}. It was left out of the rest of the run"
        )
        self.warn(
            f"{plugin.title}: {hook} raised {_reason(error)}. It is left out from here on and the run goes on; "
            "FSL_STRICT_PLUGINS=1 ends the run with the traceback"
        )

    def names(self, kind: Kind) -> list[str]:
        return sorted(
            name for k, name in self._components if k == kind and (k, name) not in self._conflicts
        )

    def components(self, kind: Kind) -> list[Component]:
        return [self._components[kind, name] for name in self.names(kind)]

    def get(self, kind: Kind, name: str) -> Component:
        """The component of this name. PluginError says what to install, enable or spell otherwise."""
        if (kind, name) in self._conflicts:
            raise PluginError(self._conflicts[kind, name])
        if (kind, name) not in self._components:
            raise PluginError(
                f"{kind} {name!r}: no installed plugin offers it. {self._remedy(kind, name)}"
            )
        return self._components[kind, name]

    def _remedy(self, kind: Kind, name: str) -> str:
        package = PACKAGES.get(kind, {}).get(name)
        if package is None:
            left_out = [f"{p.name} ({p.reason})" for p in self.plugins if p.status != "ok"]
            hint = suggest(name, self.names(kind), label="Installed")
            return f"Not loaded: {', '.join(left_out)}. {hint}" if left_out else hint
        for plugin in self.plugins:
            if plugin.distribution == package and plugin.status != "ok":
                return f"{plugin.origin} would, but it is {plugin.status}: {plugin.reason}"
        return f"pip install {package}"

    def add(
        self,
        name: str,
        module: Callable[[], object],
        distribution: str,
        version: str,
        disabled_by: str = "",
    ) -> Plugin:
        """Load one plugin; whatever goes wrong is kept as its reason.

        module: imports and returns the plugin.    disabled_by: not loaded at all, for this reason.
        """
        plugin = Plugin(name, distribution, version)
        self.plugins.append(plugin)
        if disabled_by:
            plugin.status, plugin.reason = "disabled", disabled_by
            return plugin
        if self._traced:
            _trace(f"loading {plugin.title}")
        started = time.perf_counter()
        try:
            with contained(plugin.notes):
                self._load(plugin, module())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if os.environ.get("FSL_STRICT_PLUGINS"):
                raise
            plugin.status, plugin.reason = "failed", _reason(error)
        plugin.seconds = time.perf_counter() - started
        if self._traced:
            for hook in plugin.hooks:
                _trace(f"{hook} of {plugin.title}")
            _trace(
                f"{plugin.title}: {plugin.reason or 'ok'}, {plugin.seconds:.2f} s{''.join(f'; {note}' for note in plugin.notes)}"
            )
        return plugin

    def add_file(
        self, file: Path, source: PluginSource | None = None, disabled_by: str = ""
    ) -> Plugin:
        """Load a one-file plugin. source: where it has been read already."""

        def import_file() -> ModuleType:
            read = source or PluginSource.read(file)
            path, digest = read.key
            self.files[path] = digest
            return read.load()

        return self.add(file.stem, import_file, str(file), "", disabled_by)

    def _load(self, plugin: Plugin, implementation: Any) -> None:
        wanted = getattr(implementation, "FSL_HOOK_API", specs.HOOK_API)
        if type(wanted) is not int or wanted < 1:
            raise PluginError(
                f"FSL_HOOK_API is {wanted!r}. The number of a hook API, such as {specs.HOOK_API}"
            )
        plugin.hook_api = wanted
        if wanted > specs.HOOK_API:
            raise PluginError(
                f"needs hook API {wanted}, this fsl-core has {specs.HOOK_API}. pip install --upgrade fsl-core"
            )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", specs.HookDeprecation)
            title = self._manager.register(implementation, f"{plugin.distribution}:{plugin.name}")
        try:
            callers = self._manager.get_hookcallers(implementation) or []
            impls = {
                caller.name: [i for i in caller.get_hookimpls() if i.plugin is implementation]
                for caller in callers
            }
            plugin.hooks = sorted(impls)
            for hook in plugin.hooks:
                self._check_hook(hook, impls[hook])
            plugin.notes += [f"{w.message} ({Path(w.filename).name}:{w.lineno})" for w in caught]
            offered = {(c.kind, c.name): c for c in self._offers(plugin, implementation)}
        except BaseException:
            self._manager.unregister(implementation)
            raise
        self._components |= offered
        self._by_title[title] = plugin
        plugin.offers = sorted(offered)

    def _check_hook(self, hook: str, impls: list[pluggy.HookImpl]) -> None:
        for impl in impls:
            if hook not in _hook_names() and not impl.optionalhook:
                raise PluginError(
                    f"implements unknown hook {hook!r}. {suggest(hook, _hook_names(), label='Hooks')}"
                )
            if impl.wrapper or impl.hookwrapper:
                raise PluginError(
                    f"{hook} wraps the other plugins' calls. A plain function: hooks offer or observe"
                )

    def _offers(self, plugin: Plugin, implementation: object) -> Iterator[Component]:
        for hook, kind in REGISTRATION_HOOKS.items():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin is implementation:
                    found: list[Component] = []
                    register = _collector(found, kind, plugin.origin)
                    impl.function(*(register for _ in impl.argnames))
                    for component in found:
                        self._refuse_duplicate(component)
                        yield component

    def _refuse_duplicate(self, component: Component) -> None:
        key = (component.kind, component.name)
        if key in self._components:
            self._conflicts[key] = (
                f"{component.kind} {component.name!r}: offered by both {self._components[key].origin} and {component.origin}. "
                "Disable one with --no-plugin or FSL_DISABLED_PLUGINS"
            )
            raise PluginError(self._conflicts[key])


def _collector(found: list[Component], kind: Kind, origin: str) -> specs.Register:
    def register(factory: Any, name: str | None = None) -> None:
        name = name or getattr(factory, "name", None)
        if not callable(factory) or not isinstance(name, str):
            raise PluginError(
                f"registered {factory!r} as {kind}. A class or function with a `name`"
            )
        component = Component(kind, name, factory, origin)
        _ = component.options  # a signature that is no schema is the plugin's fault: found here, not in someone's recipe
        found.append(component)

    return register


def load(
    *,
    entry_points: bool = True,
    modules: Iterable[ModuleType] = (),
    files: Iterable[Path] = (),
    recorded: RecordedPlugins | None = None,
    no_plugin: Iterable[str] = (),
) -> Registry:
    """The built-in components, installed plugins, and one-file plugins.

    Loading is contained: see `fsl_core.hooks.containment`. FSL_TRACE_PLUGINS=1 writes each load and each hook call to stderr.

    entry_points: look for installed distributions with entry points in the group `fsl`.
    modules:   plugins already imported.
    files:     one-file plugins that the user names: imported, and remembered as known to him.
    recorded:  one-file plugins that a run or a predictor names: PluginError where one of them may not be imported. A file of
               `files` takes the place of one with the same name.
    no_plugin: names of plugins or distributions to leave out; PluginError where there is none with that name.
    FSL_DISABLED_PLUGINS (`a,b`) says the same from the environment; FSL_LOAD_PLUGINS (`a,b`; empty: none) names the only
    installed plugins to load. It leaves `files` alone; where it is empty, nothing recorded is imported either.
    """
    registry = Registry()
    import_module(
        "torch"
    )  # what every component is made of; the first plugin to need it is not charged with it
    no_plugin = set(no_plugin)
    env_disabled = _listed("FSL_DISABLED_PLUGINS")
    env_only = _listed("FSL_LOAD_PLUGINS") if "FSL_LOAD_PLUGINS" in os.environ else None
    files = list(files)

    def disabled_by(name: str, distribution: str, external: bool = True) -> str:
        called = {name, distribution}
        if called & no_plugin:
            return "--no-plugin"
        if called & env_disabled:
            return "FSL_DISABLED_PLUGINS"
        return (
            "FSL_LOAD_PLUGINS"
            if external and env_only is not None and not called & env_only
            else ""
        )

    given = {file.name for file in files}
    handed = {path for path, _ in granted()}
    of_record = {
        path: disabled_by(
            PurePath(path).stem, path, external=env_only == set() and path not in handed
        )
        for path in (recorded.files if recorded else ())
        if PurePath(path).name not in given
    }
    admitted = recorded.admitted(lambda path: of_record.get(path, "-") != "") if recorded else []

    core_version = metadata.version("fsl-core")
    for found in pkgutil.iter_modules(import_module(BUILTIN).__path__):
        reason = disabled_by(found.name, "fsl-core", external=False)
        registry.add(
            found.name, _importer(f"{BUILTIN}.{found.name}"), "fsl-core", core_version, reason
        )
    for entry in (
        sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name) if entry_points else ()
    ):
        distribution, version, notes = _origin(entry, core_version)
        added = registry.add(
            entry.name, entry.load, distribution, version, disabled_by(entry.name, distribution)
        )
        added.notes += notes
    for module in modules:
        registry.add(
            module.__name__,
            lambda module=module: module,
            module.__name__,
            "",
            disabled_by(module.__name__, module.__name__),
        )
    for path, reason in of_record.items():
        if reason:
            registry.add_file(Path(path), disabled_by=reason)
    added = [registry.add_file(source.path, source) for source in admitted] + [
        registry.add_file(file, disabled_by=disabled_by(file.stem, str(file), external=False))
        for file in files
    ]
    if reason := remember(registry.files):
        added[-1].notes.append(
            f"cannot be remembered as yours ({reason}). Commands on its runs need --trust-plugins"
        )
    unknown = no_plugin - {called for p in registry.plugins for called in (p.name, p.distribution)}
    if unknown:
        name = min(unknown)
        raise PluginError(
            f"--no-plugin {name}: no plugin is called so. {suggest(name, {p.name for p in registry.plugins})}"
        )
    return registry


def plugin_files(recipe: Path | None, plugins_dir: Path | None) -> list[Path]:
    """One-file plugins: `fslplugin.py` beside the recipe, and the plugins among plugins_dir's .py.

    A plugin is a file whose code names `hookimpl`; nothing is executed to find out. Tests and what
    tools look for by name (`test_*.py`, `*_test.py`, `conftest.py`, `setup.py`) are none.
    """
    files = []
    if recipe is not None and (beside := recipe.parent / "fslplugin.py").is_file():
        files.append(beside)
    if plugins_dir is not None:
        if not plugins_dir.is_dir():
            raise PluginError(
                f"--plugins-dir {plugins_dir}: no such folder. A folder of .py files with hooks"
            )
        taken = {file.resolve() for file in files}
        found = (file for file in plugins_dir.glob("*.py") if file.resolve() not in taken)
        files += sorted(file for file in found if _names_hook(file))
    return files


_NO_PLUGINS = ("test_*.py", "*_test.py", "conftest.py", "setup.py")


def _names_hook(file: Path) -> bool:
    if not file.is_file() or any(fnmatch(file.name, pattern) for pattern in _NO_PLUGINS):
        return False
    try:
        source = file.read_bytes()
    except OSError:
        return True  # loading it says why it cannot be read
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return b"hookimpl" in source  # loading it says where it is wrong
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named |= {node.name for node in nodes if isinstance(node, ast.alias)}
    return "hookimpl" in named


def _listed(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}


def _hook_names() -> list[str]:
    return [name for name in vars(specs) if name.startswith("fsl_")]


def _importer(name: str) -> Callable[[], ModuleType]:
    return lambda: import_module(name)


def _origin(entry: metadata.EntryPoint, core_version: str) -> tuple[str, str, list[str]]:
    """Distribution, version, and a note where the distribution asks for another version of core than there is."""
    try:
        name, version, requires = entry.dist.name, entry.dist.version, entry.dist.requires or []
    except (
        Exception
    ):  # a folder of metadata that is damaged or half removed: every Python fails in its own way
        return "unknown", "", []
    wanted = [
        requirement
        for text in requires
        if (requirement := _requirement(text)) and requirement.name == "fsl-core"
    ]
    unmet = [
        str(w.specifier)
        for w in wanted
        if not w.marker and not w.specifier.contains(core_version, prereleases=True)
    ]
    notes = [
        f"asks for fsl-core{text}, and this is {core_version}. pip install --upgrade {name}"
        for text in unmet
    ]
    return name or "unknown", version or "", notes


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _trace(text: str) -> None:
    sys.stderr.write(f"fsl trace: {text}\n")


def _reason(error: BaseException) -> str:
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r}). A plugin that raises what is wrong"
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{text} ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else text

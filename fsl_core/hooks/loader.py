"""Finds plugins and imports them, and keeps one that fails from breaking anything else."""

from __future__ import annotations

import ast
import os
import pkgutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module, metadata
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import pluggy
from packaging.requirements import InvalidRequirement, Requirement

from fsl_core.config.options import Component, Kind
from fsl_core.config.outer import OPTIMIZERS, SCHEDULES
from fsl_core.errors import PluginError
from fsl_core.hooks import specs
from fsl_core.hooks.catalogue import Catalogue, collected
from fsl_core.hooks.containment import contained
from fsl_core.hooks.observers import Observers
from fsl_core.hooks.plugin import Plugin, reason_of, strict, trace, traced
from fsl_core.hooks.specs import Register
from fsl_core.hooks.trust import PluginSource, RecordedPlugins, granted, remember
from fsl_core.text import suggest

GROUP = "fsl"
BUILTIN = "fsl_core.builtin"
REGISTRATION_HOOKS: dict[str, Kind] = {
    "fsl_register_episodes": "episodes",
    "fsl_register_backbones": "backbone",
    "fsl_register_adapters": "adapter",
    "fsl_register_hypergradients": "hypergradient",
    "fsl_register_weightings": "weighting",
    "fsl_register_launchers": "launcher",
    "fsl_register_searchers": "searcher",
    "fsl_register_benchmarks": "benchmark",
    "fsl_register_stores": "store",
}
TABLES: dict[Kind, Mapping[str, Callable[..., Any]]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""What core offers beside its hooks."""


@dataclass
class Loaded:
    """What `load` gives.

    catalogue: every component that can be named.    observers: who is told what happens in a run.
    plugins:   every plugin that was found, with its status.
    files:     sha256 of each one-file plugin that was read, by its path, for the records of a run.
    """

    catalogue: Catalogue
    observers: Observers
    plugins: list[Plugin] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def load(
    *,
    entry_points: bool = True,
    modules: Iterable[ModuleType] = (),
    files: Iterable[Path] = (),
    recorded: RecordedPlugins | None = None,
    no_plugin: Iterable[str] = (),
) -> Loaded:
    """The built-in components, installed plugins, and one-file plugins.

    Loading is contained: see `fsl_core.hooks.containment`. FSL_TRACE_PLUGINS=1 writes each load
    and each hook call to stderr.

    entry_points: look for installed distributions with entry points in the group `fsl`.
    modules:   plugins already imported.
    files:     one-file plugins that the user names: imported, and remembered as known to them.
    recorded:  one-file plugins that a run or a predictor names: PluginError where one of them may
               not be imported. A file of `files` takes the place of one with the same name.
    no_plugin: names of plugins or distributions to leave out; PluginError where there is none
               with that name.
    FSL_DISABLED_PLUGINS (`a,b`) says the same from the environment; FSL_LOAD_PLUGINS (`a,b`;
    empty: none) names the only installed plugins to load. It leaves `files` alone; where it is
    empty, nothing recorded is imported either.
    """
    files = list(files)
    left_out = LeftOut(set(no_plugin))
    # Before anything else is imported, so that a refusal comes first.
    of_record = _of_record(recorded, files, left_out)
    admitted = recorded.admitted(lambda path: of_record.get(path, "-") != "") if recorded else []

    loader = Loader()
    _add_builtins(loader, left_out)
    if entry_points:
        _add_installed(loader, left_out)
    for module in modules:
        name = module.__name__
        loader.add(name, _giver(module), name, "", left_out(name, name))
    for path, reason in of_record.items():
        if reason:
            loader.add_file(Path(path), left_out_by=reason)
    _add_files(loader, admitted, files, left_out)
    _refuse_unknown(left_out.no_plugin, loader.loaded.plugins)
    return loader.loaded


class Loader:
    """Adds plugins one by one. loaded: what has come of it so far."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(specs)
        plugins: list[Plugin] = []
        self.loaded = Loaded(Catalogue(plugins), Observers(self._manager), plugins)
        for kind, table in TABLES.items():
            self.loaded.catalogue.add(
                Component(kind, name, factory, "fsl-core") for name, factory in table.items()
            )

    def add(
        self,
        name: str,
        module: Callable[[], object],
        distribution: str,
        version: str,
        left_out_by: str = "",
    ) -> Plugin:
        """Load one plugin; whatever goes wrong is kept as its reason.

        module: imports and returns the plugin.    left_out_by: not loaded at all, for this reason.
        """
        plugin = Plugin(name, distribution, version)
        self.loaded.plugins.append(plugin)
        if left_out_by:
            plugin.status, plugin.reason = "disabled", left_out_by
            return plugin
        if traced():
            trace(f"loading {plugin.title}")
        started = time.perf_counter()
        try:
            with contained(plugin.notes):
                self._load(plugin, module())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if strict():
                raise
            plugin.status, plugin.reason = "failed", reason_of(error)
        plugin.seconds = time.perf_counter() - started
        if traced():
            _trace_loaded(plugin)
        return plugin

    def add_file(
        self, file: Path, source: PluginSource | None = None, left_out_by: str = ""
    ) -> Plugin:
        """Load a one-file plugin. source: where it has been read already."""

        def import_file() -> ModuleType:
            read = source or PluginSource.read(file)
            path, digest = read.key
            self.loaded.files[path] = digest
            return read.load()

        return self.add(file.stem, import_file, str(file), "", left_out_by)

    def _load(self, plugin: Plugin, implementation: Any) -> None:
        plugin.hook_api = _hook_api(implementation)
        plugin.trackers = tuple(getattr(implementation, "FSL_TRACKERS", ()))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", specs.HookDeprecation)
            title = self._manager.register(implementation, f"{plugin.distribution}:{plugin.name}")
        try:
            impls = self._impls(implementation)
            plugin.hooks = sorted(impls)
            for hook in plugin.hooks:
                _check_hook(hook, impls[hook])
            plugin.notes += [f"{w.message} ({Path(w.filename).name}:{w.lineno})" for w in caught]
            offers = list(_offers(impls, plugin.origin))
            self.loaded.catalogue.add(offers)
        except BaseException:
            self._manager.unregister(implementation)
            raise
        self.loaded.observers.add_plugin(title, plugin)
        plugin.offers = sorted({(offer.kind, offer.name) for offer in offers})

    def _impls(self, implementation: object) -> dict[str, list[pluggy.HookImpl]]:
        """The hooks that this plugin implements, by name."""
        callers = self._manager.get_hookcallers(implementation) or []
        return {
            caller.name: [i for i in caller.get_hookimpls() if i.plugin is implementation]
            for caller in callers
        }


@dataclass
class LeftOut:
    """Which plugins the user leaves out.

    Calling it gives the switch that says so, or an empty text.

    no_plugin: names on the command line.    disabled, only: those of the environment.
    """

    no_plugin: set[str]
    disabled: set[str] = field(default_factory=lambda: _listed("FSL_DISABLED_PLUGINS") or set())
    only: set[str] | None = field(default_factory=lambda: _listed("FSL_LOAD_PLUGINS"))

    def __call__(self, name: str, distribution: str, external: bool = True) -> str:
        """external: whether FSL_LOAD_PLUGINS counts for it."""
        names = {name, distribution}
        if names & self.no_plugin:
            return "--no-plugin"
        if names & self.disabled:
            return "FSL_DISABLED_PLUGINS"
        if external and self.only is not None and not names & self.only:
            return "FSL_LOAD_PLUGINS"
        return ""


def _of_record(
    recorded: RecordedPlugins | None, files: Iterable[Path], left_out: LeftOut
) -> dict[str, str]:
    """One-file plugins that a run names, each with the switch that leaves it out, if any."""
    given = {file.name for file in files}
    handed = {path for path, _ in granted()}
    return {
        path: left_out(
            PurePath(path).stem, path, external=left_out.only == set() and path not in handed
        )
        for path in (recorded.files if recorded else ())
        if PurePath(path).name not in given
    }


def _add_builtins(loader: Loader, left_out: LeftOut) -> None:
    version = metadata.version("fsl-core")
    for found in pkgutil.iter_modules(import_module(BUILTIN).__path__):
        if found.name.startswith("_"):  # a part of another one
            continue
        reason = left_out(found.name, "fsl-core", external=False)
        loader.add(found.name, _importer(f"{BUILTIN}.{found.name}"), "fsl-core", version, reason)


def _add_installed(loader: Loader, left_out: LeftOut) -> None:
    core_version = metadata.version("fsl-core")
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        distribution, version, notes = _origin(entry, core_version)
        reason = left_out(entry.name, distribution)
        loader.add(entry.name, entry.load, distribution, version, reason).notes += notes


def _add_files(
    loader: Loader, admitted: Iterable[PluginSource], files: Iterable[Path], left_out: LeftOut
) -> None:
    added = [loader.add_file(source.path, source) for source in admitted]
    for file in files:
        reason = left_out(file.stem, str(file), external=False)
        added.append(loader.add_file(file, left_out_by=reason))
    if reason := remember(loader.loaded.files):
        added[-1].notes.append(
            f"cannot be remembered as yours ({reason}). Commands on its runs need --trust-plugins"
        )


def _refuse_unknown(no_plugin: set[str], plugins: Iterable[Plugin]) -> None:
    known = {name: p.name for p in plugins for name in (p.name, p.distribution)}
    if unknown := sorted(no_plugin - known.keys()):
        hint = suggest(unknown[0], set(known.values()))
        raise PluginError(f"--no-plugin {unknown[0]}: there is no plugin with that name. {hint}")


def _hook_api(implementation: Any) -> int:
    wanted = getattr(implementation, "FSL_HOOK_API", specs.HOOK_API)
    if type(wanted) is not int or wanted < 1:
        raise PluginError(
            f"FSL_HOOK_API is {wanted!r}. The number of a hook API, such as {specs.HOOK_API}"
        )
    if wanted > specs.HOOK_API:
        raise PluginError(
            f"needs hook API {wanted}, this fsl-core has {specs.HOOK_API}. "
            "pip install --upgrade fsl-core"
        )
    return wanted


def _check_hook(hook: str, impls: Iterable[pluggy.HookImpl]) -> None:
    names = [name for name in vars(specs) if name.startswith("fsl_")]
    for impl in impls:
        if hook not in names and not impl.optionalhook:
            raise PluginError(
                f"implements unknown hook {hook!r}. {suggest(hook, names, label='Hooks')}"
            )
        if impl.wrapper or impl.hookwrapper:
            raise PluginError(
                f"{hook} wraps the other plugins' calls. A plain function: hooks offer or observe"
            )


def _offers(impls: Mapping[str, Iterable[pluggy.HookImpl]], origin: str) -> Iterator[Component]:
    for hook, kind in REGISTRATION_HOOKS.items():
        for impl in impls.get(hook, ()):
            # pluggy has refused any argument but `register`; an implementation may leave it out
            yield from collected(_caller(impl), kind, origin)


def _caller(impl: pluggy.HookImpl) -> Callable[[Register], None]:
    def call(register: Register) -> None:
        impl.function(*(register for _ in impl.argnames))

    return call


def plugin_files(recipe: Path | None, plugins_dir: Path | None) -> list[Path]:
    """One-file plugins: `fslplugin.py` beside the recipe, and the plugins among plugins_dir's .py.

    A plugin is a file whose code names `hookimpl`; nothing is executed to find out. Tests and what
    tools look for by name (`test_*.py`, `*_test.py`, `conftest.py`, `setup.py`) are not plugins.
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


def _listed(variable: str) -> set[str] | None:
    """The names in an environment variable, or None where it is not set."""
    text = os.environ.get(variable)
    if text is None:
        return None
    return {name.strip() for name in text.split(",") if name.strip()}


def _giver(module: ModuleType) -> Callable[[], ModuleType]:
    return lambda: module


def _importer(name: str) -> Callable[[], ModuleType]:
    return lambda: import_module(name)


def _origin(entry: metadata.EntryPoint, core_version: str) -> tuple[str, str, list[str]]:
    """Distribution and version, with a note where it asks for another version of core."""
    try:
        # The metadata of a damaged or half removed package: every Python fails in its own way.
        owner = entry.dist
        assert owner is not None  # an entry point that was found belongs to a distribution
        name, version, requires = owner.name, owner.version, owner.requires or []
    except Exception:
        return "unknown", "", []
    notes = [
        f"asks for fsl-core{wanted.specifier}, and this is {core_version}. "
        f"pip install --upgrade {name}"
        for wanted in filter(None, map(_requirement, requires))
        if wanted.name == "fsl-core" and not wanted.marker
        if not wanted.specifier.contains(core_version, prereleases=True)
    ]
    return name or "unknown", version or "", notes


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _trace_loaded(plugin: Plugin) -> None:
    for hook in plugin.hooks:
        trace(f"{hook} of {plugin.title}")
    notes = "".join(f"; {note}" for note in plugin.notes)
    trace(f"{plugin.title}: {plugin.reason or 'ok'}, {plugin.seconds:.2f} s{notes}")

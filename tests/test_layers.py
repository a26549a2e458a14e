"""Imports point only to the left, in the order of LAYERS."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fsl_core

PACKAGE = Path(fsl_core.__file__).parent
LAYERS = [
    "errors",
    "text",
    "blame",
    "files",
    "launcher",
    "searcher",
    "store",
    "nn",
    "inner",
    "episode",
    "adapter",
    "hypergradient",
    "weighting",
    "learner",
    "config",
    "hooks",
    "data",
    "engine",
    "assembly",
    "runs",
    "training",
    "predicting",
    "sweeping",
    "diagnosing",
    "reporting",
    "api",
    "cli",
]
PUBLIC_USERS = {"builtin", "testing"}
TOOLS = {
    "builtin": {"data.augment", "data.cache", "data.folders", "data.vision"}
    | {
        "data.array_files",
        "data.arrays",
        "data.labels",
        "data.listings",
        "data.shapes",
        "data.sharing",
        "data.source",
    }
    | {"data.downloads", "data.formats", "data.levels", "data.omniglot", "data.work", "text"}
    | {"sweeping.local"},
    "testing": {
        "assembly.parts",
        "config.document",
        "config.recipe",
        "config.sections",
        "data.groups",
        "data.seeding",
        "engine.execution",
        "engine.fitting",
        "engine.meta_gradient",
        "engine.soundness",
        "engine.workers",
    }
    | {"blame", "errors", "hooks.loader", "runs.environment", "runs.opening", "text"},
}


def imported(file: Path) -> set[str]:
    """Modules of fsl_core that a file imports, as dotted names without `fsl_core.`.

    Imports for type checkers count: a circle that only they see is a circle. `` is the package.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*file.relative_to(PACKAGE.parent).parts[: -node.level], node.module]
                if node.level
                else [node.module]
            )
            module = ".".join(filter(None, base))
            folder = (PACKAGE.parent / module.replace(".", "/")).is_dir()
            names |= {f"{module}.{alias.name}" for alias in node.names} if folder else {module}
    return {
        n.removeprefix("fsl_core").removeprefix(".") for n in names if n.split(".")[0] == "fsl_core"
    }


def test_imports_point_left():
    wrong, seen = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer not in LAYERS:
            continue
        seen += 1
        for name in imported(file):
            other = name.split(".")[0]
            # The package hands on what every room makes, so only the program itself may use it.
            whole = layer != "cli" and not name
            if (
                whole
                or other in PUBLIC_USERS
                or (other in LAYERS and LAYERS.index(other) > LAYERS.index(layer))
            ):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert seen > 20
    assert not wrong


def test_builtins_and_testing_use_public_names():
    wrong, seen = [], 0
    for folder in PUBLIC_USERS:
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            seen += 1
            own = {name for name in imported(file) if not name.startswith(folder)}
            public = {"", *fsl_core.__all__, *TOOLS[folder], "nn.norms"}
            wrong += [f"{file.relative_to(PACKAGE)} imports {name}" for name in own - public]
    assert seen > 8
    assert not wrong


PLUGINS = PACKAGE.parent / "plugins"
FOR_PLUGINS = {"fsl_core", "fsl_core.data", "fsl_core.testing"}


@pytest.mark.skipif(not PLUGINS.is_dir(), reason="not a checkout")
def test_plugins_import_public_rooms_alone():
    wrong, seen = [], 0
    for file in sorted(PLUGINS.glob("*/src/**/*.py")):
        seen += 1
        modules = {m for m in named_modules(file) if m.split(".")[0] == "fsl_core"}
        wrong += [f"{file.relative_to(PLUGINS)}: {m}" for m in sorted(modules - FOR_PLUGINS)]
    assert seen > 20
    assert not wrong


def named_modules(file: Path) -> set[str]:
    """The modules that the import statements of a file name, as they are written."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return names


def test_core_imports_no_plugin():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None) or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not [
                    n
                    for n in names
                    if n.split(".")[0] in {"higher", "learn2learn"}
                    or (n.startswith("fsl_") and not n.startswith("fsl_core"))
                ], file

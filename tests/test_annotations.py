"""Every annotation names something that exists: in core, in the plugins that are installed, and in
the kit."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import fsl_core

PLUGINS = sorted({entry.value.split(":")[0] for entry in metadata.entry_points(group="fsl")})
LEFT_OUT = {"fsl_core.__main__"}  # it runs the program


def modules(package: str) -> list[ModuleType]:
    """A package's modules, or the one module of a plugin that is a single file."""
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(getattr(root, "__path__", []), f"{package}.")
    return [root, *(importlib.import_module(m.name) for m in found if m.name not in LEFT_OUT)]


def for_type_checkers(module: ModuleType) -> dict[str, object]:
    """What a module imports under `if TYPE_CHECKING:`."""
    names: dict[str, object] = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__name__, "exec"), names)
    return names


def functions(cls: type) -> Iterator[tuple[str, object]]:
    """The functions of a class under their names, out of their wrappers."""
    for name, member in vars(cls).items():
        inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        if inspect.isfunction(inner):
            yield f"{cls.__name__}.{name}", inner


def annotated(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Classes and functions that a module defines, and the functions of its classes."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            own = {"__annotations__": vars(value).get("__annotations__", {})}
            yield name, type(name, (), own)  # its bases may be annotated in other modules
            yield from functions(value)
        elif inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("package", ["fsl_core", *PLUGINS])
def test_annotations_name_what_exists(package: str):
    wrong, seen = [], 0
    for module in modules(package):
        names = vars(module) | for_type_checkers(module)
        for name, value in annotated(module):
            seen += 1
            try:
                typing.get_type_hints(value, names, names, include_extras=True)
            except (NameError, AttributeError, TypeError) as error:
                wrong.append(f"{module.__name__}.{name}: {error}")
    assert seen > 0
    assert not wrong, "\n".join(wrong)


def test_an_annotation_that_names_nothing_is_found():
    module = ModuleType("mistaken")
    module.fsl = fsl_core
    exec("def f(loss: 'fsl.Lost'): ...", vars(module))
    with pytest.raises(AttributeError, match="Lost"):
        typing.get_type_hints(module.f, vars(module))

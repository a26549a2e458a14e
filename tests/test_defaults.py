"""Defaults of the plugins in this repository: what the recipes use, and what the READMEs print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fsl_core.config.document import read_document
from fsl_core.config.options import Component
from fsl_core.hooks.loader import load

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PLUGINS = load()
SECTIONS = {"adapter": "adapter", "weighting": "outer.weighting"}
"""Kinds of components with options of a method, and where a recipe names them."""


def _own(kinds: tuple[str, ...]) -> list[Component]:
    """Components of these kinds whose package has a README in this repository."""
    found = [
        PLUGINS.catalogue.get(kind, name)
        for kind in kinds
        for name in PLUGINS.catalogue.names(kind)
    ]
    return [component for component in found if _readme(component).is_file()]


def _readme(component: Component) -> Path:
    return ROOT / "plugins" / component.origin.split()[0] / "README.md"


def _defaults(component: Component) -> dict[str, Any]:
    fields = component.options.model_fields
    return {name: field.get_default() for name, field in fields.items() if name != "name"}


def _named(section: str) -> Iterator[dict[str, Any]]:
    """What recipes and the entries of their matrices write there, as mappings."""
    for path in RECIPES:
        data = read_document(path).data
        value: Any = data
        for key in section.split("."):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        for entry in [value, *data.get("matrix", {}).get(section, [])]:
            if entry:
                yield {"name": entry} if isinstance(entry, str) else dict(entry)


def _values_used(component: Component) -> dict[str, list[Any]]:
    """For each option the values that recipes of the component run with, named or by default."""
    sections = [s for s in _named(SECTIONS[component.kind]) if s["name"] == component.name]
    defaults = _defaults(component)
    return {name: [s.get(name, default) for s in sections] for name, default in defaults.items()}


OWN = _own(("adapter", "weighting"))
if not OWN:
    pytest.skip("no plugin of this repository is installed", allow_module_level=True)


def test_there_are_components_and_recipes_of_them():
    assert any(values for component in OWN for values in _values_used(component).values())


def test_lists_of_matrices_count_as_recipes():
    written = [section for section in _named("adapter") if section["name"] == "ridge"]
    assert any(section.get("regularisation") == 1.0 for section in written)
    assert {"name": "hypernet"} in list(_named("adapter"))


@pytest.mark.parametrize("component", OWN, ids=lambda c: c.name)
def test_a_default_is_what_a_recipe_uses(component: Component):
    """A default that every recipe of the component replaces was run by nobody: the README says why
    it is there."""
    defaults, unexplained = _defaults(component), []
    for option, used in _values_used(component).items():
        if used and defaults[option] not in used and not _explained(component, option):
            unexplained.append(f"{option}: {defaults[option]!r}, recipes use {used[0]!r}")
    assert not unexplained, (
        f"{component.name}: {'; '.join(unexplained)}. A default that a recipe uses, or a paragraph "
        f"of {_readme(component).relative_to(ROOT)} on the option, its default and the recipe"
    )


def _explained(component: Component, option: str) -> bool:
    """Whether a paragraph of prose speaks of the option, of its default and of recipes."""
    for paragraph in _readme(component).read_text(encoding="utf-8").split("\n\n"):
        words = set(re.findall(r"\w+", paragraph))
        about = {"default", "defaults"} & words and {"recipe", "recipes"} & words
        if about and f"`{option}`" in paragraph and not paragraph.startswith("|"):
            return True
    return False


def test_an_explanation_is_a_paragraph_of_the_readme():
    ridge = next((c for c in OWN if c.name == "ridge"), None)
    if ridge is None:
        pytest.skip("fsl-kernel-closed-form is not installed")
    assert _explained(ridge, "regularisation")
    assert not _explained(ridge, "form")  # only a row of the table


@dataclass(frozen=True)
class Row:
    """A row of a table of options. names: components that it may speak of; empty: not said."""

    line: int
    names: tuple[str, ...]
    option: str
    default: str


def _rows(readme: Path) -> Iterator[list[Row]]:
    """The tables with columns `option` and `default`; rows of several options are taken apart."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        header = _cells(lines[at])
        end = next((i for i in range(at, len(lines)) if not lines[i].startswith("|")), len(lines))
        if "default" in header and "option" in header:
            yield list(_table(lines, at, end, header))
        at = max(end, at + 1)


def _table(lines: list[str], at: int, end: int, header: list[str]) -> Iterator[Row]:
    names: tuple[str, ...] = ()
    for i in range(at + 2, end):
        cells = dict(zip(header, _cells(lines[i]), strict=True))
        said = cells.get("adapter") or cells.get("weighting")
        names = tuple(re.findall(r"`([^`]+)`", said)) if said else names
        options = re.findall(r"`(\w+)`", cells["option"])
        defaults = re.findall(r"`([^`]+)`", cells["default"]) or [cells["default"]]
        for option, default in zip(options, defaults, strict=True):
            yield Row(i + 1, names, option, default)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


READMES = sorted({_readme(component) for component in OWN})


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_readme_prints_every_option_with_its_default(readme: Path):
    kinds = ("adapter", "weighting", "episodes", "backbone")
    components = {c.name: c for c in _own(kinds) if _readme(c) == readme}
    parse, wrong, printed = YAML(typ="safe").load, [], set()
    for rows in _rows(readme):
        options = {row.option for row in rows}
        for row in rows:
            meant = row.names or [n for n, c in components.items() if options <= {*_defaults(c)}]
            assert meant, f"{readme.parent.name}:{row.line}: no component has {row.option}"
            for name in meant:
                default = _defaults(components[name])[row.option]
                printed.add((name, row.option))
                if parse(row.default) != default:
                    found = f"{row.default}, but {name} has {default!r}"
                    wrong.append(f"line {row.line}: {row.option}: {found}")
    methods = [c for c in components.values() if c.kind in SECTIONS]
    wanted = {(c.name, option) for c in methods for option in _defaults(c)}
    missing = [f"{name}: {option}: in no table" for name, option in sorted(wanted - printed)]
    assert not wrong + missing, f"{readme.relative_to(ROOT)}: {'; '.join(wrong + missing)}"


TABLES = """\
| adapter | option | default |
|---|---|---|
| `a`, `b` | `x` | `0.5` |
| | `y`, `z` | `1`, `two` |

| option | meaning |
|---|---|
| `x` | no default here |

| option | default |
|---|---|
| `x` | null |
"""


def test_tables_are_read_as_they_are_written(tmp_path: Path):
    """A name holds until the next one, and a row may speak of several components or several
    options."""
    (tmp_path / "README.md").write_text(TABLES)
    first, second = _rows(tmp_path / "README.md")
    names = ("a", "b")
    assert first == [Row(3, names, "x", "0.5"), Row(4, names, "y", "1"), Row(4, names, "z", "two")]
    assert second == [Row(12, (), "x", "null")]

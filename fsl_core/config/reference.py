"""The recipe reference: every section and every option of what is installed.

It is one page of Markdown, made from the schema.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fsl_core.config.document import KeyPath, dotted
from fsl_core.config.options import Component, Kind
from fsl_core.config.sections import (
    DEFAULT_NAMES,
    SECTIONS,
    Catalogue,
    Evaluate,
    ExecutionOptions,
    Expected,
    MatrixSection,
    SearchSection,
    StartFrom,
    recipe_model,
    section_model,
)

HEAD = """\
# Recipe reference

On this page you can look up every key of a [recipe](recipes.md): its type, default and meaning.

The page is made from the constructors themselves: {origins}. `fsl schema --markdown` prints it for
what you have installed. `fsl show KIND NAME` prints one component of it.
"""

MEANINGS: dict[Kind, str] = {
    "episodes": "where tasks come from",
    "backbone": "what makes features of an item",
    "adapter": "the inner loop",
    "hypergradient": "how the meta-gradient is estimated, in training alone",
    "weighting": "what each task of a meta-batch counts",
    "optimizer": "what follows the meta-gradient",
    "schedule": "how the optimizer's step size changes",
    "launcher": "what starts the runs of a sweep or a search",
    "searcher": "what proposes parameters, and which trials to end early",
}


def recipe_reference(catalogue: Catalogue) -> str:
    """Markdown with a table for each section of a recipe and for each component."""
    recipe = recipe_model(catalogue)
    components = [c for kind in SECTIONS.values() for c in catalogue.components(kind)]
    distributions = {c.origin for c in components if c.origin[-1].isdigit()}
    parts = [HEAD.format(origins=", ".join(sorted(distributions)))]
    parts += ["## The recipe\n", _table(recipe, ())]
    if outer := section_model(recipe, "outer"):
        parts += ["## outer\n", _table(outer, ("outer",))]
    for heading, model in (
        ("execution", ExecutionOptions),
        ("evaluate", Evaluate),
        ("start_from", StartFrom),
        ("expect", Expected),
        ("matrix", MatrixSection),
        ("search", SearchSection),
    ):
        parts += [f"## {heading}\n", f"{model.__doc__}\n", _table(model)]
    for path, kind in SECTIONS.items():
        parts.append(f"## {_plural(kind)}\n\nUnder `{dotted(path)}`.\n")
        parts += [part for c in catalogue.components(kind) for part in _described(c)]
    beside: dict[Kind, str] = {
        "launcher": "Under `launcher` of a recipe with a `matrix` or a `search`.",
        "searcher": "Under `search.searcher`.",
    }
    for kind, where in beside.items():
        parts.append(f"## {_plural(kind)}\n\n{where}\n")
        parts += [part for c in catalogue.components(kind) for part in _described(c)]
    return "\n".join(parts)


def _described(component: Component) -> Iterator[str]:
    yield f"### {component.name}\n\nFrom {component.origin}.\n"
    yield f"```text\n{component.doc}\n```\n"
    yield _table(component.options)


def option_rows(component: Component) -> list[tuple[str, str, str, str]]:
    """Option, type with bounds, default, and meaning of each option of a component."""
    return [row for row in _rows(component.options) if row[0] != "name"]


def _table(model: type[BaseModel], path: KeyPath | None = None) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    rows = [row for row in _rows(model, path) if row[0] != "name"]
    lines += [
        f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(meaning)} |"
        for name, kind, default, meaning in rows
    ]
    return "\n".join(lines) + "\n" if rows else "It has no options.\n"


def _rows(
    model: type[BaseModel], path: KeyPath | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each key of a model.

    path: of the model in a recipe, if it has keys that name components or hold sections.
    """
    schema = model.model_json_schema()
    for name, spec in schema["properties"].items():
        required = name in schema.get("required", ())
        meaning = spec.get("description", "")
        if path is not None and (where := (*path, name)) in SECTIONS:
            kind = SECTIONS[where]
            listed = f"one of the [{_plural(kind)}](#{_plural(kind)})"
            yield name, listed, DEFAULT_NAMES.get(where, "required"), MEANINGS[kind]
        elif path == () and "$ref" in json.dumps(spec):
            doc = inspect.getdoc(model.model_fields[name].annotation) or ""
            about = meaning or doc.split(";")[0].rstrip(".")
            default = "none" if spec.get("default") is None else "its defaults"
            yield name, f"[section](#{name})", "required" if required else default, about
        else:
            default = "required" if required else json.dumps(spec.get("default"))
            yield name, type_text(spec), default, meaning


def type_text(spec: Mapping[str, Any]) -> str:
    """An option's type with its bounds in words, from its JSON Schema."""
    if "enum" in spec or "const" in spec:
        return " | ".join(map(str, spec.get("enum", [spec.get("const")])))
    if alternatives := spec.get("anyOf", spec.get("oneOf")):
        return " | ".join(type_text(s) for s in alternatives)
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    text = spec.get("type", "any")
    if text == "array":
        (items, *_) = spec.get("prefixItems", [spec.get("items", {})])  # of a tuple, its first
        text = f"list of {type_text(items)}"
    within = [f"{sign} {spec[key]:g}" for key, sign in bounds.items() if key in spec]
    return " ".join([text, *within])


def _plural(kind: str) -> str:
    return kind if kind.endswith("s") else f"{kind}s"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

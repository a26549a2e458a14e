"""Makes pages and pictures when the documentation is built.

reference.md is about every plugin that is installed then, api.md about core's public names, and
the pictures of architecture.md show the code as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import fsl_core
from fsl_core.config.reference import recipe_reference
from fsl_core.hooks.loader import load

sys.path.insert(0, str(Path(__file__).parent))
import pictures

HEADINGS = {
    "api": "Run, train, judge",
    "adapter": "Adapters",
    "learner": "Learners",
    "weighting": "Task weightings",
    "episode": "Episodes",
    "data": "Data",
    "nn": "Backbones",
    "predicting": "Your pictures",
    "hooks": "Plugins",
    "errors": "Errors",
}
"""Sections of the page by the room of a name; other rooms follow under their own name."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"reference.md": recipe_reference(load().catalogue), "api.md": python_reference()}
    pages |= {"rooms.svg": pictures.rooms(), "flow.svg": pictures.flow()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def python_reference() -> str:
    """Every public name of fsl_core, described by its docstring."""
    rooms: dict[str, list[str]] = {room: [] for room in HEADINGS}
    for name in fsl_core.__all__:
        module = fsl_core._HOME[name]
        rooms.setdefault(module.partition(".")[0], []).append(f"fsl_core.{module}.{name}")
    lines = [
        "# Python reference",
        "",
        "`import fsl_core as fsl` gives every name on this page.",
        "",
    ]
    for room, names in rooms.items():
        if names:
            lines += [f"## {HEADINGS.get(room, room.capitalize())}", ""]
            lines += [line for name in names for line in (f"::: {name}", "")]
    return "\n".join(lines)

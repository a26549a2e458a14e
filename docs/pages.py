"""Writes the pages that are made from code and runs to docs/made/, before the site is built.

python docs/pages.py

The recipe reference is about every plugin that is installed then, the Python reference about
core's public names, the gallery about the kept runs. They are files, so any builder can take them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import gallery
import notebooks
import pictures

import fsl_core
from fsl_core.config.reference import recipe_reference
from fsl_core.hooks.loader import load

MADE = Path(__file__).parent / "made"

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


def write(folder: Path = MADE) -> None:
    """Empty the folder and write all of its pages."""
    catalogue = load().catalogue
    reference = recipe_reference(catalogue).replace("](recipes.md", "](../recipes.md")
    made = {"reference.md": reference, "api.md": python_reference()}
    made |= {"rooms.svg": pictures.rooms(), "flow.svg": pictures.flow()}
    made |= gallery.pages(catalogue) | notebooks.made()
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


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


if __name__ == "__main__":
    write()

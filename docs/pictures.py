"""Draws the pictures of architecture.md from the code, when the documentation is built.

The rooms and their imports are read from the source. The stages of a run are functions that have to
exist, so that a picture cannot outlive what it shows.
"""

from __future__ import annotations

import ast
import io
import sys
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

import fsl_core

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import test_layers

PACKAGE = Path(fsl_core.__file__).parent
INK, PALE, ARC = "#37474f", "#e3f2fd", "#90a4ae"

ROOMS = test_layers.LAYERS
"""From left to right: the same list as the test holds."""

STAGES = [
    ("recipe file", "fsl_core.config.recipe", "read_recipe"),
    ("checked recipe", "fsl_core.assembly.experiment", "build_experiment"),
    ("source, learner, weighting", "fsl_core.assembly.preflight", "preflight"),
    ("tried parts", "fsl_core.runs.opening", "new_run"),
    ("run directory", "fsl_core.training.outer_loop", "train"),
    ("checkpoints, metrics", "fsl_core.training.judging", "judge"),
    ("result, episodes", "fsl_core.reporting.report", "write_report"),
    ("report", "", ""),
]
"""What there is, and the function that makes the next thing of it."""


def rooms() -> str:
    """An SVG: rooms in order, with an arc from each to every room that it imports."""
    place = {room: i for i, room in enumerate(ROOMS)}
    figure = Figure(figsize=(12, 3.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.8, len(ROOMS) - 0.2), ylim=(-2.2, 4.2))
    axes.set_axis_off()
    for room, x in place.items():
        axes.text(x, -0.3, room, rotation=60, ha="right", va="top", color=INK, fontsize=10)
        axes.plot(x, 0, "o", color=INK, markersize=6)
        for other in imports(room):
            ends = ((x, 0.1), (place[other], 0.1))
            bend = f"arc3,rad={0.28 if x > place[other] else -0.28}"
            colour = ARC if x > place[other] else "red"
            axes.add_patch(
                FancyArrowPatch(*ends, connectionstyle=bend, color=colour, alpha=0.55, lw=0.8)
            )
    return _svg(figure)


def flow() -> str:
    """An SVG: what becomes of a recipe until its report, with the function of each stage."""
    figure = Figure(figsize=(7.2, 7.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-len(STAGES) + 0.3, 0.6))
    axes.set_axis_off()
    box = {"boxstyle": "round,pad=0.45", "facecolor": PALE, "edgecolor": INK}
    for i, (thing, module, function) in enumerate(STAGES):
        axes.text(2.6, -i, thing, ha="center", va="center", color=INK, fontsize=11, bbox=box)
        if not module:
            continue
        getattr(import_module(module), function)  # so that no picture shows what is gone
        named = f"{module.removeprefix('fsl_core.')}.{function}"
        axes.annotate(
            "", (2.6, -i - 0.72), (2.6, -i - 0.28), arrowprops={"arrowstyle": "->", "color": INK}
        )
        axes.text(2.9, -i - 0.5, named, va="center", color=INK, fontsize=10, family="monospace")
    return _svg(figure)


def imports(room: str) -> set[str]:
    """The other rooms that the files of a room import, also for type checkers alone."""
    folder = PACKAGE / room
    files = folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{room}.py"]
    found: set[str] = set()
    for file in files:
        if "templates" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] == "fsl_core" and len(parts) > 1:
                    found.add(parts[1])
    return (found & set(ROOMS)) - {room}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()

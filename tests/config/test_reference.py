"""The recipe reference lists everything, and says what each option means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fsl_core.config.options import Component
from fsl_core.config.reference import option_rows, recipe_reference
from fsl_core.config.sections import SECTIONS
from fsl_core.hooks.loader import load

PLUGINS = load(entry_points=False)
PAGE = recipe_reference(PLUGINS.catalogue)
COMPONENTS = [
    component for kind in SECTIONS.values() for component in PLUGINS.catalogue.components(kind)
]


def table(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its first two lines."""
    text = re.search(
        rf"^##+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL
    ).group(1)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_section_is_there():
    keys = [row[0] for row in table("The recipe")]
    assert keys == [
        f"`{k}`"
        for k in (
            "seed",
            "requires",
            "episodes",
            "backbone",
            "adapter",
            "outer",
            "execution",
            "evaluate",
            "start_from",
            "expect",
        )
    ]
    meaning = "outer steps; 0: nothing is trained, and the run is evaluated"
    assert ["`steps`", "integer >= 0", "required", meaning] in table("outer")
    assert [
        "`weighting`",
        "one of the [weightings](#weightings)",
        "uniform",
        "what each task of a meta-batch counts",
    ] in table("outer")
    assert ["`episodes`", "integer > 1", "600", "number of test episodes"] in table("evaluate")
    assert ["`checkpoint`", "best \\| last", '"best"', "best on validation, or the last"] in table(
        "evaluate"
    )
    assert ["`mode`", "auto \\| loop \\| vmap \\| compiled", '"auto"'] in [
        row[:3] for row in table("execution")
    ]
    assert [row[0] for row in table("expect")] == ["`value`", "`tolerance`"]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.kind}-{c.name}")
def test_every_option_of_every_component_is_there(component: Component):
    assert f"\n### {component.name}\n\nFrom fsl-core" in PAGE
    assert component.doc in PAGE
    rows = table(component.name)
    options = [f"`{name}`" for name in component.options.model_fields if name != "name"]
    assert [row[0] for row in rows] == options
    assert all(len(row) == 4 and row[1] and row[2] for row in rows)


def test_every_key_has_a_meaning():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []


def test_bounds_and_requirements_are_told():
    rows = {
        row[0]: row for row in option_rows(PLUGINS.catalogue.get("adapter", "nearest-centroid"))
    }
    assert rows["temperature"][1:3] == ("number > 0", "1.0")
    assert rows["distance"][1:3] == ("euclidean | cosine", '"euclidean"')
    rows = {row[0]: row for row in option_rows(PLUGINS.catalogue.get("schedule", "multistep"))}
    assert rows["milestones"][1:3] == ("list of integer >= 0", "required")


def test_links_within_the_page_have_their_heading():
    links = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert links >= {"adapters", "backbones", "episodes", "weightings", "outer", "evaluate"}
    assert links <= set(re.findall(r"^## ([\w-]+)$", PAGE, re.MULTILINE))


def test_the_documentation_builds_the_page_from_it():
    root = Path(__file__).parent.parent.parent
    pages, makefile = root / "docs" / "pages.py", root / "Makefile"
    assert "$(BIN)/python docs/pages.py" in makefile.read_text(encoding="utf-8")
    assert "recipe_reference(catalogue)" in pages.read_text(encoding="utf-8")

"""Makes notebooks from the pages docs/notebook-*.md, whose fences run as tests."""

from __future__ import annotations

from pathlib import Path

import jupytext

PAGES = sorted(Path(__file__).parent.glob("notebook-*.md"))
OFFER = "This page is also [a notebook]"
"""How the line begins that a notebook of the page does without."""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def made() -> dict[str, str]:
    """The text of each notebook, by its name in docs/made/."""
    return {f"{page.stem}.ipynb": notebook(page) for page in PAGES}


def notebook(page: Path) -> str:
    """Fences of Python are cells of code, all else is text."""
    lines = page.read_text(encoding="utf-8").splitlines()
    kept = "\n".join(line for line in lines if not line.startswith(OFFER))
    read = jupytext.reads(kept, fmt="md")
    read.metadata["kernelspec"] = KERNEL
    return jupytext.writes(read, fmt="ipynb")

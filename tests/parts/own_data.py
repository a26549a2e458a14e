"""The files that docs/own-data.md shows how to make."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLED = {title: content for _, title, content in FENCE.findall(PAGE) if title}


def make(file: str, folder: Path) -> Path:
    """The file of arrays of this name, made in a folder as the page says."""
    with chdir(folder):
        exec(TITLED[f"make_{Path(file).stem}.py"], {})
    return folder / file

"""Links between the Markdown pages of the repository lead somewhere, and the navigation has every page.

`make docs` looks at the pages of docs/ alone, and takes a minute.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
PAGES = sorted(page for page in FOUND if not page.is_relative_to(ROOT / "docs" / "made"))
MADE = ROOT / "docs" / "made"
"""Pages, pictures and notebooks that are made before the documentation is built."""


def prose(page: Path) -> str:
    """The text of a page without its fences."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def headings(page: Path) -> set[str]:
    """What a link may name after `#`: the headings of a page, as the site has them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"[\s-]+", "-", text) for text in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if target.is_relative_to(MADE):
            continue
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(link)
    assert not broken


def test_links_were_found():
    assert len(PAGES) >= 30
    assert sum(prose(page).count("](") for page in PAGES) > 100


def test_the_navigation_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE)
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    names = [str(page.relative_to(ROOT / "docs")) for page in pages]
    assert sorted(name for name in listed if not name.startswith("made/")) == sorted(names)

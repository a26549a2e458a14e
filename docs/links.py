"""Finishes a built site: it fetches nothing, and every link in it leads somewhere.

python docs/links.py SITE

Addresses elsewhere are listed in SITE/elsewhere.txt, and not asked. Exits with 1 where a link is
broken or a page would load something from elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme loads from elsewhere so that pages opened as files can be searched."""
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {given[key] or "" for key in ("id", "name") if key in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]] or "")


@dataclass
class Found:
    """faults: lines for what is broken.    elsewhere: addresses, with the pages that name them."""

    faults: list[str] = field(default_factory=list)
    elsewhere: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def look(site: Path) -> Found:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = Found()
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for address in page.loads:
            if urlsplit(address).scheme in ("http", "https"):
                found.faults.append(f"{name}: loads {address}. A file of the site")
        for address in [*page.links, *page.loads]:
            if urlsplit(address).scheme in ("http", "https"):
                found.elsewhere[address].append(name)
            elif why := _broken(path, address, pages, site):
                found.faults.append(f"{name}: link {address}: {why}")
    return found


def _broken(path: Path, address: str, pages: dict[Path, Page], site: Path) -> str:
    parts = urlsplit(address)
    if parts.scheme in ("mailto", "data", "javascript"):
        return ""
    place = unquote(parts.path)
    start = site if place.startswith("/") else path.parent
    target = Path(os.path.normpath(start / place.lstrip("/"))) if place else path
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return "there is no such file"
    known = target not in pages or unquote(parts.fragment) in pages[target].places
    return "" if known or parts.fragment.startswith("__") else "there is no such place on that page"


def without_shim(site: Path) -> None:
    """Pages take the shim from the site in place of elsewhere."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if SHIM in text:
            own = os.path.relpath(site / "iframe-worker.js", path.parent)
            path.write_text(text.replace(SHIM, Path(own).as_posix()), encoding="utf-8")


def _told(found: Found) -> Iterator[str]:
    for address, names in sorted(found.elsewhere.items()):
        yield f"{address}  {' '.join(dict.fromkeys(names))}\n"


if __name__ == "__main__":
    built = Path(sys.argv[1])
    without_shim(built)
    seen = look(built)
    (built / "elsewhere.txt").write_text("".join(_told(seen)), encoding="utf-8")
    sys.exit("\n".join(seen.faults) or 0)

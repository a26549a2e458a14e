"""Pages in headless Chromium: what they hold once drawn, how wide they are, and what they asked the
network for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

PROBE = """<script>
addEventListener("load", () => {
  const count = s => document.querySelectorAll(s).length;
  const wide = [...document.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().width < 40).length;
  const broken = [...document.images].filter(e => !e.naturalWidth).length;
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    svgs: count("svg"), images: count("img"), broken, unseen: wide, rows: count("table.grid tr"), figures: count("figure"),
    cut: [...document.querySelectorAll(".stack td, .stack span")].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    background: getComputedStyle(document.documentElement).backgroundColor, colour: getComputedStyle(document.body).color,
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  });
  document.body.append(probe);
});
</script></body>"""


class Seen(NamedTuple):
    svgs: int
    images: int
    broken: int
    unseen: int
    rows: int
    figures: int
    cut: int
    overflow: int
    background: str
    colour: str
    fetched: list[str]


def _look(page: Path, profile: Path, width: int = 1200, dark: bool = False) -> Seen:
    """Load a page in a window of this width; the test is skipped where there is no Chromium."""
    browser = next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )
    if browser is None:
        pytest.skip("no chromium on this machine, so no page was looked at")
    probed = profile.with_suffix(".html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    command = [
        *(
            browser,
            *options.split(),
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
        ),
        *(
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=5000",
            "--dump-dom",
        ),
        probed.as_uri(),
    ]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', drawn, re.DOTALL)
    assert found, drawn[-500:]
    return Seen(**json.loads(found[1]))


@pytest.fixture
def look() -> Callable[..., Seen]:
    return _look

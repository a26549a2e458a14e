"""The documentation site: pages that are made, notebooks, the gallery, and what looks at links."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fsl_core.hooks.loader import load

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """Import a script of docs/ by its name."""
    monkeypatch.syspath_prepend(DOCS)

    def script(name: str):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return pytest.importorskip(name, reason="it is made with the documentation")

    return script


def site(folder: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


@pytest.mark.parametrize("page", sorted(DOCS.glob("notebook-*.md")), ids=lambda page: page.stem)
def test_a_notebook_is_its_page(made, page: Path):
    """Its cells are the fences, which run as tests of the page, in their order; all run alone."""
    notebooks = made("notebooks")
    read = json.loads(notebooks.notebook(page))
    code = ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == "code"]
    text = page.read_text(encoding="utf-8")
    assert code == [
        fence.strip() for fence in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]
    assert len(code) >= 3
    assert read["metadata"]["kernelspec"]["name"] == "python3"
    prose = "".join("".join(c["source"]) for c in read["cells"] if c["cell_type"] == "markdown")
    assert "notebook](" not in prose
    assert f"(made/{page.stem}.ipynb)" in text


def test_four_notebooks():
    names = {page.stem.removeprefix("notebook-") for page in DOCS.glob("notebook-*.md")}
    assert names == {"first-run", "own-pictures", "own-adapter", "comparing"}


def test_the_python_reference_has_every_public_name(made):
    import fsl_core

    reference = made("pages").python_reference()
    found = re.findall(r"^::: fsl_core\.[\w.]*?(\w+)$", reference, re.MULTILINE)
    assert sorted(found) == sorted(fsl_core.__all__)


def test_the_gallery_has_a_curve_and_a_figure_of_each_kept_recipe(made):
    gallery = made("gallery")
    for package in ("fsl_maml", "fsl_timm", "fsl_wormhole", "fsl_moml"):
        pytest.importorskip(package, reason="kept runs use it")
    found = gallery.pages(load().catalogue)
    page = found.pop("gallery.md")
    shown = re.findall(r'src="(gallery/[^"]+)"|\]\((gallery/[^)]+)\)', page)
    assert sorted(one or other for one, other in shown) == sorted(found)
    assert len(found) > 25
    assert all(text.startswith("<svg") for text in found.values())
    assert len(re.findall(r"(?:accuracy|mse) \d+\.\d{3} ± \d+\.\d{3} over", page)) == page.count(
        "<figure>"
    )
    for recipe in re.findall(r"<code>fsl run (\S+)</code>", page):
        assert (DOCS.parent / recipe).is_file()
    assert sum(map(len, found.values())) < 1_500_000


def test_links_that_lead_nowhere_are_told(made, tmp_path: Path):
    links = made("links")
    site(
        tmp_path,
        a='<p id="here"><a href="b.html#there">b</a> <a href="#here">a</a> <a href="c.html">c</a>',
        b='<a href="a.html#gone">a</a> <img src="no.png"> <a href="https://example.org/x">x</a>',
    )
    (tmp_path / "b.html").write_text((tmp_path / "b.html").read_text() + '<h2 id="there">')
    found = links.look(tmp_path)
    assert sorted(found.faults) == [
        "a.html: link c.html: there is no such file",
        "b.html: link a.html#gone: there is no such place on that page",
        "b.html: link no.png: there is no such file",
    ]
    assert dict(found.elsewhere) == {"https://example.org/x": ["b.html"]}


def test_a_site_loads_nothing_from_elsewhere(made, tmp_path: Path):
    links = made("links")
    script = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
    site(tmp_path, a=script)
    (tmp_path / "iframe-worker.js").write_text("")
    told = "a.html: loads https://unpkg.com/iframe-worker/shim. A file of the site"
    assert links.look(tmp_path).faults == [told]
    links.without_shim(tmp_path)
    assert links.look(tmp_path).faults == []
    assert 'src="iframe-worker.js"' in (tmp_path / "a.html").read_text()


def test_named_lines_of_a_docstring_are_a_list(made):
    text = """Does it.

x: (n, 2) numbers;
   of any size.
y, z:   the rest. Values: two.
    longer.
Raises ValueError: for others.

    y: shown as it is

Sources: Vinyals et al. 2016."""
    assert (
        made("docstrings").as_list(text)
        == """Does it.

- `x`: (n, 2) numbers;
  of any size.
- `y`, `z`: the rest. Values: two.
  longer.

Raises ValueError: for others.

    y: shown as it is

Sources: Vinyals et al. 2016."""
    )
    assert made("docstrings").as_list("Does it:\nname: a word.") == "Does it:\n\n- `name`: a word."

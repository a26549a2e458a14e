"""The page docs/plugins-directory.md, made of docs/plugins-directory.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fsl_core.reporting.papers import PaperTable
from release.dist import ROOT

LISTED = ROOT / "docs" / "plugins-directory.yaml"
PAGE = LISTED.with_suffix(".md")
HEAD = """\
# Plugin directory

Plugins that are known to work with fsl-core. `fsl plugins` lists those that are installed, and
`fsl plugins --available` asks the package index for packages with the keyword `fsl-plugin`, listed
here or not. What a plugin may do to you is what any package may: see [trust](trust.md).

"""
TAIL = """
The last column names the report of the [conformance kit](conformance.md), or the tests that call
the kit. Where it is empty there are none: the kit has nothing for observers.

To list yours, add it to `docs/plugins-directory.yaml` in a pull request, with the report that
`pytest --fsl-report CONFORMANCE.md` writes, and run `python -m release directory`, which makes this
page.
"""

Kind = Literal[
    "adapter",
    "backbone",
    "episodes",
    "hypergradient",
    "launcher",
    "observer",
    "searcher",
    "store",
    "weighting",
]


class Listed(BaseModel):
    """A plugin in the list; the fields are explained at its top."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    kinds: list[Kind]
    summary: str
    source: str
    kit: str = ""


def read_directory(file: Path = LISTED) -> list[Listed]:
    """The plugins of a list. SystemExit names the first thing that is wrong with it."""
    try:
        data = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        listed = TypeAdapter(list[Listed]).validate_python(data)
    except YAMLError as error:
        raise SystemExit(f"{file.name}: {error}. A list of plugins in YAML") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise SystemExit(f"{file.name}: {where}: {fault['msg']}. As its top explains") from error
    names = [plugin.name for plugin in listed]
    if names != sorted(set(names)):
        raise SystemExit(f"{file.name}: {', '.join(names)}. Each once, in the order of their names")
    return listed


def page(listed: list[Listed]) -> str:
    """The page as it has to be."""
    rows = [
        [_linked(p.name, p.source), ", ".join(p.kinds), p.summary, _linked(p.kit, p.kit)]
        for p in listed
    ]
    table = PaperTable(["package", "adds", "what", "conformance"], rows)
    return f"{HEAD}{table.markdown()}\n{TAIL}"


def _linked(text: str, target: str) -> str:
    """A link to a page of the web. A path of this repository is none: a site does not have it."""
    if not target.startswith("https://"):
        return f"`{text}`" if text else ""
    return f"[{text.removeprefix('https://')}]({target})"


def write() -> None:
    PAGE.write_text(page(read_directory()), encoding="utf-8")

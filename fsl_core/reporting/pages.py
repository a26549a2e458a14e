"""HTML pages that hold all they need and fetch nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from fsl_core.runs.files import write_atomically
from fsl_core.text import printable


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template of this package and write it; returns the path."""
    write_atomically(path, rendered(template, **values))
    return path


def rendered(template: str, **values: Any) -> str:
    """A template of this package, filled."""
    environment = Environment(
        loader=PackageLoader("fsl_core.reporting"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        finalize=_shown,
    )
    return environment.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    """What a page shows of a value that no template has formatted.

    A text has nothing hidden in it; markup is ours, from templates and figures. A number has four
    digits that count.

    >>> _shown(0.019286544020177476), _shown(1200.0), _shown(None)
    ('0.01929', '1200', 'none')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "none"
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, lines=True) if plain else value

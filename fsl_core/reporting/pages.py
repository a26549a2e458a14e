"""HTML pages that hold all they need and fetch nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from fsl_core.training.files import write_atomically


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template of this package and write it; returns the path."""
    environment = Environment(
        loader=PackageLoader("fsl_core.reporting"), autoescape=select_autoescape(), trim_blocks=True
    )
    write_atomically(path, environment.get_template(template).render(**values))
    return path

"""Makes the page reference.md when the documentation is built, from core and every plugin that is installed then."""

from __future__ import annotations

from mkdocs.structure.files import File, Files

from fsl_core.config.reference import recipe_reference
from fsl_core.hooks.loader import load


def on_files(files: Files, config) -> Files:
    files.append(File.generated(config, "reference.md", content=recipe_reference(load().catalogue)))
    return files

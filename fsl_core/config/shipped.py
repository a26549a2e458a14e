"""Recipes that travel with core and have a name, such as `glyphs/5w1s-maml`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from fsl_core.errors import RecipeError

PACKAGE = Path(__file__).parent.parent


def shipped_recipes() -> dict[str, Path]:
    """Their files by name: those in the wheel, or in a checkout of the repository all of its own."""
    folder = PACKAGE / "recipes"
    if not folder.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        folder = PACKAGE.parent / "recipes"
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_recipe(given: Path) -> Path:
    """The file that a path or the name of a shipped recipe means; a file of that path goes first.

    Raises RecipeError, with the shipped names that are near, where there is neither.
    """
    shipped = shipped_recipes()
    try:
        given.stat()
    except (OSError, ValueError) as error:
        if (name := given.as_posix()) in shipped:
            return shipped[name]
        reason = getattr(error, "strerror", None) or error
        near = _near(given, list(shipped))
        fitting = (
            f"Did you mean the shipped recipe {' or '.join(near)}?"
            if near
            else "A recipe file in YAML, or a name that `fsl recipes` lists"
        )
        raise RecipeError(f"{given}: {reason}. {fitting}") from error
    return given


def _near(given: Path, names: list[str]) -> list[str]:
    wanted = given.as_posix().removeprefix("recipes/").removesuffix(given.suffix).lower()
    last = wanted.rpartition("/")[2]
    same = [name for name in names if name.rpartition("/")[2] == last]
    if wanted in names or not same:
        return get_close_matches(wanted, names, n=1, cutoff=0.7)
    return same[:3]


def summary_of(recipe: str) -> str:
    """What the comment at the head of a recipe says of it, beside how it is run.

    >>> summary_of("# fsl run recipes/a.yaml -s episodes.root=DIR        real pictures")
    'real pictures'
    """
    first, _, rest = recipe.partition("\n")
    _, _, told = first.partition(8 * " ")
    second = re.match(r"# (.*)", rest)
    return told.strip() or (second[1] if second else "")

"""Recipes that travel with core and have a name, such as `glyphs/5w1s-maml`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from fsl_core.errors import RecipeError

PACKAGE = Path(__file__).parent.parent


def shipped_recipes() -> dict[str, Path]:
    """Their files by name: those in the wheel, or in a checkout all of the repository."""
    folder = PACKAGE / "recipes"
    if not folder.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        folder = PACKAGE.parent / "recipes"
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_recipe(given: Path) -> Path:
    """The file that a path or the name of a shipped recipe means; a file of that path goes first.

    Raises RecipeError, with the nearest names, if there is neither.
    """
    shipped = shipped_recipes()
    try:
        given.stat()
    except (OSError, ValueError) as error:
        if (name := given.as_posix()) in shipped:
            return shipped[name]
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{given}: {reason}. {_near(given, list(shipped))}") from error
    if (given / "recipe.yaml").is_file():
        raise RecipeError(f"{given}: a run. `fsl resume {given}`, or a recipe file in YAML")
    return given


def _near(given: Path, names: list[str]) -> str:
    """The end of a message: files beside it and shipped recipes with similar names."""
    beside = {file.stem: file for ending in ("yaml", "yml") for file in _beside(given, ending)}
    wanted = given.as_posix().removeprefix("recipes/").removesuffix(given.suffix)
    if files := get_close_matches(given.stem, beside, n=1, cutoff=0.7):
        return f"Did you mean {beside[files[0]]}?"
    same = [name for name in names if name.rpartition("/")[2] == wanted.rpartition("/")[2]]
    if wanted in names or not same:
        same = get_close_matches(wanted.lower(), names, n=1, cutoff=0.7)
    if same:
        return f"Did you mean the shipped recipe {' or '.join(same[:3])}?"
    return "A recipe file in YAML, or a name that `fsl recipes` lists"


def _beside(given: Path, ending: str) -> list[Path]:
    try:
        return list(given.parent.glob(f"*.{ending}"))
    except (OSError, ValueError):
        return []


def summary_of(recipe: str) -> str:
    """What the comment at the head of a recipe says about it, apart from how to run it.

    >>> summary_of("# fsl run recipes/a.yaml -s episodes.root=DIR        real pictures")
    'real pictures'
    """
    first, _, rest = recipe.partition("\n")
    _, _, told = first.partition(8 * " ")
    second = re.match(r"# (.*)", rest)
    return told.strip() or (second[1] if second else "")

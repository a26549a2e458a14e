"""One part of a recipe, built: what its constructor refuses is told with the recipe's line."""

from __future__ import annotations

import os
from typing import Any

from fsl_core.blame import NO_SUPER, STRICT, forgot_super, raised
from fsl_core.config.document import KeyPath
from fsl_core.config.recipe import Recipe
from fsl_core.data.source import EpisodeSource
from fsl_core.episode import TaskShape
from fsl_core.errors import FslError, PluginError, RecipeError


def build_part(recipe: Recipe, path: KeyPath, **injected: Any) -> Any:
    """The component of a section, built with its options and what the framework passes by name.

    Raises RecipeError with the section's line for options that the constructor refuses, and
    PluginError for a mistake in the constructor itself.
    """
    section = section_at(recipe, path)
    try:
        return recipe.chosen[path].build(section, **injected)
    except ValueError as error:
        raise RecipeError(f"{recipe.document.where_built(path)}: {error}") from error
    except (RuntimeError, MemoryError) as error:  # torch's own: a layer larger than memory
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"{recipe.document.where_built(path)}: cannot be built: {reason}. "
            "Other or smaller options"
        ) from error
    except FslError:
        raise
    except Exception as error:  # a mistake of the plugin's author
        if os.environ.get("FSL_STRICT_PLUGINS"):
            raise
        told = _of_constructor(error, recipe.chosen[path].factory.__module__)
        raise PluginError(f"{recipe.named(path)}: {told}") from error


def build_source(recipe: Recipe, path: KeyPath) -> EpisodeSource:
    """The episodes of a section, with every source that it lists.

    Raises what `build_part` raises, and PluginError if that is not a source of episodes.
    """
    listed = {
        option: [
            (build_source(recipe, (*path, option, i)), entry.weight)
            for i, entry in enumerate(getattr(section_at(recipe, path), option))
        ]
        for option in recipe.chosen[path].lists
    }
    source = build_part(recipe, path, **listed)
    wrong = ""
    if not isinstance(source, EpisodeSource):
        wrong = "not an EpisodeSource of fsl_core. A class derived from it"
    elif not isinstance(getattr(source, "task", None), TaskShape):
        wrong = "no attribute task. self.task = fsl_core.TaskShape(...) in its constructor"
    if wrong:
        raise PluginError(f"{recipe.named(path)}: {wrong}")
    return source


def section_at(recipe: Recipe, path: KeyPath) -> Any:
    """The checked section of a component."""
    section = recipe.sections
    for part in path:
        section = section[part] if isinstance(part, int) else getattr(section, part)
    return section


def _of_constructor(error: Exception, home: str) -> str:
    if forgot_super(error):
        return NO_SUPER
    return f"its constructor raised {raised(error, home)}. {STRICT}"

"""One part of a recipe, built: what its constructor refuses is told with the recipe's line."""

from __future__ import annotations

import os
from typing import Any

from fsl_core.blame import NO_SUPER, STRICT, forgot_super, raised
from fsl_core.config.document import KeyPath
from fsl_core.config.recipe import Recipe
from fsl_core.errors import FslError, PluginError, RecipeError


def build_part(recipe: Recipe, path: KeyPath, **injected: Any) -> Any:
    """The component of a section, built with its options and what the framework passes by name.

    Raises RecipeError with the section's line for options that the constructor refuses, and
    PluginError for a mistake in the constructor itself.
    """
    section = recipe.sections
    for part in path:
        section = getattr(section, str(part))
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


def _of_constructor(error: Exception, home: str) -> str:
    if forgot_super(error):
        return NO_SUPER
    return f"its constructor raised {raised(error, home)}. {STRICT}"

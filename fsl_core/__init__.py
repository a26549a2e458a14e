"""fsl-core: few-shot meta-learning from parts. Plugin authors need the names below and nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsl_core.adapter import Adapter, call_declared
    from fsl_core.data.draws import draw_bits, to_distinct, to_uniform
    from fsl_core.data.pool import LabelledPool, PooledEpisodes
    from fsl_core.data.source import EpisodeSource, Split, SplitContents
    from fsl_core.episode import Episode, LabelledSet, Loss, Predictor, TaskShape, one_hot
    from fsl_core.errors import (
        DataError,
        FslError,
        PluginError,
        PluginWarning,
        RecipeError,
        RunError,
        ShapeError,
    )
    from fsl_core.hooks.specs import HOOK_API, hookimpl
    from fsl_core.learner import Learner, gradient_columns
    from fsl_core.nn.blocks import ConvBlock
    from fsl_core.nn.forward import call_with
    from fsl_core.nn.norms import (
        Norm,
        NormedBackbone,
        NormPolicy,
        derivatives_of_any_order,
        replace_norms,
    )
    from fsl_core.predicting.adapting import adapt_to_folder, load_predictor
    from fsl_core.predicting.predictor import AdaptedPredictor
    from fsl_core.weighting import Outcomes, TaskWeighting

_NAMES = {
    "adapter": "Adapter call_declared",
    "data.draws": "draw_bits to_distinct to_uniform",
    "data.pool": "LabelledPool PooledEpisodes",
    "data.source": "EpisodeSource Split SplitContents",
    "episode": "Episode LabelledSet Loss Predictor TaskShape one_hot",
    "errors": "DataError FslError PluginError PluginWarning RecipeError RunError ShapeError",
    "hooks.specs": "HOOK_API hookimpl",
    "learner": "Learner gradient_columns",
    "nn.blocks": "ConvBlock",
    "nn.forward": "call_with",
    "nn.norms": "Norm NormPolicy NormedBackbone derivatives_of_any_order replace_norms",
    "predicting.adapting": "adapt_to_folder load_predictor",
    "predicting.predictor": "AdaptedPredictor",
    "weighting": "Outcomes TaskWeighting",
}
"""The public names of each module."""
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "HOOK_API",
    "AdaptedPredictor",
    "Adapter",
    "ConvBlock",
    "DataError",
    "Episode",
    "EpisodeSource",
    "FslError",
    "LabelledPool",
    "LabelledSet",
    "Learner",
    "Loss",
    "Norm",
    "NormPolicy",
    "NormedBackbone",
    "Outcomes",
    "PluginError",
    "PluginWarning",
    "PooledEpisodes",
    "Predictor",
    "RecipeError",
    "RunError",
    "ShapeError",
    "Split",
    "SplitContents",
    "TaskShape",
    "TaskWeighting",
    "adapt_to_folder",
    "call_declared",
    "call_with",
    "derivatives_of_any_order",
    "draw_bits",
    "gradient_columns",
    "hookimpl",
    "load_predictor",
    "one_hot",
    "replace_norms",
    "to_distinct",
    "to_uniform",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first used: `fsl --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fsl_core' has no attribute {name!r}")
    return getattr(import_module(f"fsl_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

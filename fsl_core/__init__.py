"""fsl-core: few-shot meta-learning from parts. Plugin authors need the names below and nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsl_core.blocks import ConvBlock
    from fsl_core.config.validation import validated
    from fsl_core.data.draws import draw_bits, to_distinct, to_uniform
    from fsl_core.data.pool import LabelledPool, PooledEpisodes
    from fsl_core.data.source import EpisodeSource, Split, SplitContents
    from fsl_core.episode import (
        Adapter,
        Episode,
        LabelledSet,
        Learner,
        Loss,
        Outcomes,
        Predictor,
        TaskShape,
        TaskWeighting,
        call_declared,
        gradient_columns,
        one_hot,
    )
    from fsl_core.errors import (
        DataError,
        FslError,
        PluginError,
        PluginWarning,
        RecipeError,
        RunError,
        ShapeError,
    )
    from fsl_core.forward import call_with
    from fsl_core.functional import Functional
    from fsl_core.hooks.specs import HOOK_API, hookimpl
    from fsl_core.inner import InnerProblem, Point, descend
    from fsl_core.norms import (
        Norm,
        NormedBackbone,
        NormPolicy,
        derivatives_of_any_order,
        replace_norms,
    )
    from fsl_core.training.prediction import AdaptedPredictor, adapt_to_folder, load_predictor

_HOME = {
    "ConvBlock": "blocks",
    "call_with": "forward",
    "validated": "config.validation",
    "Functional": "functional",
    **dict.fromkeys(("InnerProblem", "Point", "descend"), "inner"),
    **dict.fromkeys(("LabelledPool", "PooledEpisodes"), "data.pool"),
    **dict.fromkeys(("EpisodeSource", "Split", "SplitContents"), "data.source"),
    **dict.fromkeys(("draw_bits", "to_distinct", "to_uniform"), "data.draws"),
    **dict.fromkeys(
        ("Adapter", "Episode", "LabelledSet", "Learner", "Loss", "Outcomes", "Predictor"), "episode"
    ),
    **dict.fromkeys(
        ("TaskShape", "TaskWeighting", "call_declared", "gradient_columns", "one_hot"), "episode"
    ),
    **dict.fromkeys(
        (
            "DataError",
            "FslError",
            "PluginError",
            "PluginWarning",
            "RecipeError",
            "RunError",
            "ShapeError",
        ),
        "errors",
    ),
    **dict.fromkeys(("HOOK_API", "hookimpl"), "hooks.specs"),
    **dict.fromkeys(("Norm", "NormPolicy", "NormedBackbone", "derivatives_of_any_order"), "norms"),
    "replace_norms": "norms",
    **dict.fromkeys(
        ("AdaptedPredictor", "adapt_to_folder", "load_predictor"), "training.prediction"
    ),
}

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
    "Functional",
    "InnerProblem",
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
    "Point",
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
    "descend",
    "draw_bits",
    "gradient_columns",
    "hookimpl",
    "load_predictor",
    "one_hot",
    "replace_norms",
    "to_distinct",
    "to_uniform",
    "validated",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first used: `fsl --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fsl_core' has no attribute {name!r}")
    return getattr(import_module(f"fsl_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

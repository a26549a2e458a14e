"""fsl-core: few-shot meta-learning from parts.

These are its public names. Authors of plugins need them, `fsl_core.data` and `fsl_core.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsl_core.adapter import Adapter, call_declared
    from fsl_core.api import (
        RunResult,
        SweepTable,
        compare,
        embed_files,
        evaluate,
        feature_reuse,
        load_recipe,
        resume,
        run,
        sweep,
        train,
    )
    from fsl_core.config.recipe import Recipe
    from fsl_core.config.validation import validated
    from fsl_core.data.draws import draw_bits, to_distinct, to_uniform
    from fsl_core.data.groups import Group
    from fsl_core.data.pool import LabelledPool
    from fsl_core.data.pooled import PooledEpisodes
    from fsl_core.data.source import EpisodeSource, Split, SplitContents
    from fsl_core.diagnosing.reuse import FeatureReuse
    from fsl_core.engine.evaluation import Evaluation
    from fsl_core.episode import (
        Episode,
        LabelledSet,
        Loss,
        Predictor,
        TaskShape,
        Varies,
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
    from fsl_core.hooks.run_view import RunView
    from fsl_core.hooks.specs import HOOK_API, hookimpl
    from fsl_core.hypergradient import Hypergradient, inner_problem_of, with_gradient
    from fsl_core.inner import InnerProblem, Point, descend
    from fsl_core.launcher import Ended, Launcher, Work
    from fsl_core.learner import Learner, gradient_columns
    from fsl_core.nn.blocks import ConvBlock
    from fsl_core.nn.forward import call_with
    from fsl_core.nn.functional import Functional
    from fsl_core.nn.norms import (
        Norm,
        NormedBackbone,
        NormPolicy,
        derivatives_of_any_order,
        replace_norms,
    )
    from fsl_core.nn.pretrained import Preprocessing, PretrainedBackbone
    from fsl_core.nn.weights import LoadedWeights, load_weights
    from fsl_core.predicting.adapting import adapt_to_folder, load_predictor
    from fsl_core.predicting.predictor import AdaptedPredictor
    from fsl_core.reporting.run_figures import run_figures
    from fsl_core.searcher import Choices, Range, Searcher, Study, Trial
    from fsl_core.store import Store
    from fsl_core.weighting import Outcomes, TaskWeighting

_NAMES = {
    "adapter": "Adapter call_declared",
    "api": "RunResult SweepTable compare embed_files evaluate feature_reuse load_recipe resume run "
    "sweep train",
    "config.recipe": "Recipe",
    "config.validation": "validated",
    "data.draws": "draw_bits to_distinct to_uniform",
    "data.groups": "Group",
    "data.pool": "LabelledPool",
    "data.pooled": "PooledEpisodes",
    "data.source": "EpisodeSource Split SplitContents",
    "diagnosing.reuse": "FeatureReuse",
    "engine.evaluation": "Evaluation",
    "episode": "Episode LabelledSet Loss Predictor TaskShape Varies one_hot",
    "errors": "DataError FslError PluginError PluginWarning RecipeError RunError ShapeError",
    "hooks.run_view": "RunView",
    "hooks.specs": "HOOK_API hookimpl",
    "hypergradient": "Hypergradient inner_problem_of with_gradient",
    "inner": "InnerProblem Point descend",
    "launcher": "Ended Launcher Work",
    "learner": "Learner gradient_columns",
    "nn.blocks": "ConvBlock",
    "nn.forward": "call_with",
    "nn.functional": "Functional",
    "nn.norms": "Norm NormPolicy NormedBackbone derivatives_of_any_order replace_norms",
    "nn.pretrained": "Preprocessing PretrainedBackbone",
    "nn.weights": "LoadedWeights load_weights",
    "predicting.adapting": "adapt_to_folder load_predictor",
    "predicting.predictor": "AdaptedPredictor",
    "reporting.run_figures": "run_figures",
    "searcher": "Choices Range Searcher Study Trial",
    "store": "Store",
    "weighting": "Outcomes TaskWeighting",
}
"""The public names of each module."""
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "HOOK_API",
    "AdaptedPredictor",
    "Adapter",
    "Choices",
    "ConvBlock",
    "DataError",
    "Ended",
    "Episode",
    "EpisodeSource",
    "Evaluation",
    "FeatureReuse",
    "FslError",
    "Functional",
    "Group",
    "Hypergradient",
    "InnerProblem",
    "LabelledPool",
    "LabelledSet",
    "Launcher",
    "Learner",
    "LoadedWeights",
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
    "Preprocessing",
    "PretrainedBackbone",
    "Range",
    "Recipe",
    "RecipeError",
    "RunError",
    "RunResult",
    "RunView",
    "Searcher",
    "ShapeError",
    "Split",
    "SplitContents",
    "Store",
    "Study",
    "SweepTable",
    "TaskShape",
    "TaskWeighting",
    "Trial",
    "Varies",
    "Work",
    "adapt_to_folder",
    "call_declared",
    "call_with",
    "compare",
    "derivatives_of_any_order",
    "descend",
    "draw_bits",
    "embed_files",
    "evaluate",
    "feature_reuse",
    "gradient_columns",
    "hookimpl",
    "inner_problem_of",
    "load_predictor",
    "load_recipe",
    "load_weights",
    "one_hot",
    "replace_norms",
    "resume",
    "run",
    "run_figures",
    "sweep",
    "to_distinct",
    "to_uniform",
    "train",
    "validated",
    "with_gradient",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first used: `fsl --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fsl_core' has no attribute {name!r}")
    if _HOME[name] == "api":  # as the command does: torch's threads read it when torch is loaded
        import_module("fsl_core.engine.environment").prepare_process()
    return getattr(import_module(f"fsl_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

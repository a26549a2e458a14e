"""Searcher optuna for fsl-core."""

import fsl_core as fsl
from fsl_optuna.searcher import Optuna

__all__ = ["Optuna"]


@fsl.hookimpl
def fsl_register_searchers(register):
    register(Optuna)

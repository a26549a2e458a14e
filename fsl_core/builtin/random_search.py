"""Parameters drawn at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fsl_core as fsl


class RandomSearch(fsl.Searcher):
    """Each parameter is drawn evenly from its range or choices, by itself.

    A key that several methods search has the same value in their trials of one number, if it has
    the same range. Nothing is pruned.

    Source: Bergstra and Bengio 2012, JMLR 13.
    """

    name = "random"

    def propose(self, study: fsl.Study, trials: Sequence[fsl.Trial]) -> Mapping[str, Any]:
        return {
            key: _drawn(among, np.random.default_rng(study.random_seed(key, len(trials))))
            for key, among in study.space.items()
        }


def _drawn(among: fsl.Range | fsl.Choices, random: np.random.Generator) -> Any:
    if isinstance(among, fsl.Choices):
        return among.values[int(random.integers(len(among.values)))]
    return among.fitted(_number(among, random))


def _number(among: fsl.Range, random: np.random.Generator) -> float:
    if among.log:
        return math.exp(random.uniform(math.log(among.low), math.log(among.high)))
    if among.whole or among.step is not None:
        step = among.step or 1
        steps = math.floor((among.high - among.low) / step + 1e-9)
        return among.low + step * int(random.integers(steps, endpoint=True))
    return random.uniform(among.low, among.high)


@fsl.hookimpl
def fsl_register_searchers(register):
    register(RandomSearch)

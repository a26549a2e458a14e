"""PWCCA by the formula of the library anatome, beside that of the paper, on the same features.

The official code of arXiv:2112.13137 asks github.com/moskomule/anatome for it. Written after that
library's text; no line of it is here.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

import fsl_core as fsl
from fsl_core.diagnosing.layers import layers_of, recorded
from fsl_core.diagnosing.similarity import distances

Found = dict[tuple[str, str, str], list[float]]
"""A distance for each episode, by layer, what it is of, and the formula."""

QUERIES = 100
"""Items of a layer, as in the official code."""
ROUNDING = 1e-6
"""Relative size of a change of weights that no function of them shows in float32."""
OURS, THERE, EARLIER = "the paper's", "anatome's", "anatome's until 2021-11-13"
ADAPTED, MOVED = "adapted", "not adapted, rounded"


def pwcca(before: Tensor, after: Tensor, orthonormal: bool = True) -> float:
    """1 - sum_i a_i r_i over all canonical directions w_i, in the precision of the features.

    before, after: (n, p) of the same n >= p items. a_i: in proportion to sum_n |<x_n, w_i>|, items
    x_n before. orthonormal: the w_i of p numbers are made so first, as since 13 November 2021.

    The paper's a_i are sums over features of |<h_i, x_j>|, h_i the variate of n numbers. And no
    direction is left out here: one of rounding errors alone, 1e-7 of the first, is made as long as
    the others.
    """
    x, y = before - before.mean(0), after - after.mean(0)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    p, r, _ = torch.linalg.svd(u.T @ torch.linalg.svd(y, full_matrices=False)[0])
    w = v.T @ (p / s[:, None])
    if orthonormal:
        w = torch.linalg.qr(w)[0]
    a = (x @ w).abs().sum(0)
    return float(1 - (a / a.sum()) @ r)


def compared(learner: fsl.Learner, source: fsl.EpisodeSource, seed: int, episodes: int) -> Found:
    """Features before adaptation against those after it, and against rounded ones."""
    learner.eval()
    moved = rounded(learner, seed)
    task = replace(source.task, n_query=QUERIES)
    found: Found = defaultdict(list)
    for episode in source.batch("test", range(episodes), seed, task).unbatch():
        before, after = features(learner, episode)
        other, _ = features(moved, episode)
        for layer in before:
            for name, end in ((ADAPTED, after), (MOVED, other)):
                pair = before[layer], end[layer]
                value = distances(*pair)["pwcca"].value
                found[layer, name, OURS].append(float("nan") if value is None else value)
                found[layer, name, THERE].append(pwcca(*pair))
                found[layer, name, EARLIER].append(pwcca(*pair, orthonormal=False))
    return dict(found)


def rounded(learner: fsl.Learner, seed: int) -> fsl.Learner:
    """A copy, with weights moved by a millionth of themselves."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))
    return other


@torch.no_grad()
def features(
    learner: fsl.Learner, episode: fsl.Episode
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the query items, by layer, before and after adaptation."""
    predictors = learner.trajectory(episode)
    layers = layers_of(learner.backbone)
    ends = []
    for predict in (predictors[0], predictors[-1]):
        with recorded(layers, len(episode.query.x), "whole") as found:
            predict(episode.query.x)
        ends.append(found)
    return ends[0], ends[1]


def over_layers(found: Found, name: str, formula: str) -> float:
    """The mean over layers and episodes."""
    parts = [values for (_, of, by), values in found.items() if (of, by) == (name, formula)]
    return fmean(value for values in parts for value in values)


def table(found: Sequence[Found]) -> str:
    """A line for each layer; means over episodes and over the runs that were compared."""
    formulas = (OURS, THERE, EARLIER)
    columns = [(name, formula) for name in (ADAPTED, MOVED) for formula in formulas]
    lines = [
        "| layer | " + " | ".join(f"{name}: {formula}" for name, formula in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for layer in dict.fromkeys(layer for layer, _, _ in found[0]):
        means = [fmean(fmean(each[layer, *column]) for each in found) for column in columns]
        lines.append(f"| {layer} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    means = [fmean(over_layers(each, *column) for each in found) for column in columns]
    lines.append("| all | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    return "\n".join(lines)

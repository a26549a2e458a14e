"""Averages of norm layers, moved once for each outer step."""

from __future__ import annotations

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.data.groups import Group
from fsl_core.testing import tiny_episodes
from fsl_core.training.outer_loop import move_running_statistics

TASK = fsl.TaskShape("classification", 3, 2, 4, (1, 4, 4), 3)


@pytest.mark.parametrize(
    ("norm", "sets"),
    [("running", ["support"]), ("ordinary", ["support", "query"]), ("transductive", [])],
)
def test_a_tenth_of_the_way_to_the_meta_batch(norm, sets):
    """Of all its support sets, and under `ordinary` of its query sets, in two groups."""
    learner = fsl.Learner(Mlp(TASK, hidden=(5,), norm=norm), NearestCentroid(TASK))
    first, second = tiny_episodes(TASK, 2), tiny_episodes(TASK, 3, seed=1)
    groups = [Group(TASK, first, (0, 2)), Group(TASK, second, (1, 3, 4))]
    linear, layer = (learner.backbone.layers[0][i] for i in (0, 1))
    items = [getattr(part, of).x.flatten(0, 1) for of in sets for part in (first, second)]
    move_running_statistics(learner, groups)
    if not sets:
        assert not list(layer.buffers())
        return
    seen = linear(torch.cat(items).flatten(1)).double()
    torch.testing.assert_close(layer.running_mean.double(), 0.1 * seen.mean(0))
    torch.testing.assert_close(layer.running_var.double(), 0.9 + 0.1 * seen.var(0))

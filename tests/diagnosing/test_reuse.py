"""Feature re-use: which layers move, what is null, and the scores beside it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.diagnosing.layers import layers_of
from fsl_core.diagnosing.similarity import distances
from tests.diagnosing.parts import Blobs, Steps, learner


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def reused(found: fsl.Learner, source: fsl.EpisodeSource, **options) -> fsl.FeatureReuse:
    return fsl.feature_reuse(found, source, episodes=3, progress=False, **options)


def test_distances_are_those_of_activations_before_and_after(blobs):
    found = learner(blobs).eval()
    told = reused(found, blobs)
    assert list(told.distances) == ["layers.0", "layers.1"]
    for number, episode in enumerate(blobs.batch("test", range(3), 0).unbatch()):
        problem = found.adapter.inner_problem(found.backbone, episode.support)
        phi = list(problem.points())[-1].phi
        weights = {name.removeprefix("backbone."): w.detach() for name, w in phi.items()}
        x = episode.query.x.flatten(1)
        for k in range(2):
            before = found.backbone.layers[: k + 1](x).detach()
            after, h = None, x
            for i in range(k + 1):
                h = (h @ weights[f"layers.{i}.0.weight"].T + weights[f"layers.{i}.0.bias"]).relu()
                after = h
            for measure, distance in distances(before, after).items():
                of_layer = told.distances[f"layers.{k}"].get(measure, [])
                if distance.value is None:
                    assert not of_layer
                    assert told.reasons[f"layers.{k}"][measure]
                else:
                    assert of_layer[number] == pytest.approx(distance.value, abs=1e-4)


def test_a_head_that_is_adapted_alone_moves_no_feature(blobs):
    told = reused(learner(blobs, "head"), blobs)
    assert {d for layer in told.distances.values() for each in layer.values() for d in each} == {0}
    assert told.scores["head alone"] == told.scores["as adapted"]
    assert all(shift > 0 for shift in told.shifts)


def test_scores_are_those_of_evaluation_and_of_steps_on_the_head(blobs):
    told = reused(learner(blobs), blobs)
    judged = fsl.evaluate(learner(blobs), blobs, episodes=3, progress=False)
    assert told.scores["not adapted"] == judged.after_steps[0]
    assert told.scores["as adapted"] == judged.scores
    of_head = fsl.evaluate(learner(blobs, "head"), blobs, episodes=3, progress=False)
    assert told.scores["head alone"] == pytest.approx(of_head.scores, abs=1e-6)
    found = learner(blobs)
    nearest = fsl.Learner(found.backbone, NearestCentroid(blobs.task))
    by_mean = fsl.evaluate(nearest, blobs, episodes=3, progress=False)
    assert told.scores["nearest class mean"] == pytest.approx(by_mean.scores, abs=1e-6)


def test_a_body_that_is_adapted_alone_has_no_score_of_the_head(blobs):
    told = reused(learner(blobs, "body"), blobs)
    assert "head alone" not in told.scores
    assert told.reasons["scores"]["head alone"].startswith("its inner steps move the backbone")
    assert told.summary()["scores"]["head alone"]["mean"] is None


def test_more_queries_make_measures_valid(blobs):
    few, many = (Blobs(n_query=n) for n in (3, 8))
    assert "pwcca" not in reused(learner(few), few).distances["layers.0"]
    task = many.task
    assert reused(learner(few), few, task=task).distances["layers.0"]["pwcca"]


def test_rows_of_the_support_set_are_left_out(blobs):
    told = reused(learner(blobs, norm="support"), blobs)
    assert told.items == {"layers.0": 24, "layers.1": 24}


def test_regression_has_no_class_means():
    source = Sinusoid(n_query=40)
    told = reused(learner(source), source)
    assert told.metric == "mse"
    assert told.reasons["scores"]["nearest class mean"] == "a regression has no classes"
    assert told.scores["as adapted"]


def test_positions_are_items():
    source = Blobs(2, 1, 3, (1, 28, 28))
    backbone = Conv4(source.task, channels=4)
    found = fsl.Learner(backbone, Steps(source.task, backbone))
    told = reused(found, source, maps="positions")
    assert told.items == {f"blocks.{k}": 6 * (14, 7, 3, 1)[k] ** 2 for k in range(4)}
    assert told.distances["blocks.0"]["pwcca"]
    filters = reused(found, source, layers=["blocks.0.conv"])
    assert filters.reasons["blocks.0.conv"]["cka"] == "the predictor does not call it"


def test_what_is_refused(blobs):
    backbone = Mlp(blobs.task)
    closed = fsl.Learner(backbone, NearestCentroid(blobs.task))
    with pytest.raises(ValueError, match=r"adapter 'nearest-centroid': one predictor, so there is"):
        reused(closed, blobs)
    with pytest.raises(ValueError, match=r"layers: 'conv\*' matches no module of the backbone"):
        reused(learner(blobs), blobs, layers=["conv*"])
    with pytest.raises(ValueError, match=r"maps: 'rows'. One of whole, positions"):
        reused(learner(blobs), blobs, maps="rows")
    with pytest.raises(ValueError, match=r"fsl.feature_reuse: episodes: found 1. At least 2"):
        fsl.feature_reuse(learner(blobs), blobs, episodes=1)


def test_layers_are_the_parts_of_the_first_sequence():
    net = nn.Module()
    net.body = nn.Sequential(nn.Sequential(nn.Linear(1, 2), nn.ReLU()), nn.ReLU())
    assert list(layers_of(net)) == ["body.0"]
    net.tail = nn.Linear(2, 2)
    assert list(layers_of(net)) == ["body", "tail"]
    assert not layers_of(nn.Flatten())


def test_rows_have_intervals_over_episodes(blobs):
    told = reused(learner(blobs), blobs)
    row = next(r for r in told.rows() if (r["layer"], r["measure"]) == ("layers.1", "cka"))
    values = torch.tensor(told.distances["layers.1"]["cka"], dtype=torch.float64)
    assert row["mean"] == pytest.approx(values.mean().item())
    assert row["interval"] == pytest.approx(1.96 * values.std().item() / 3**0.5)
    assert re.match(r"24 items for \d directions", row["note"]) is None
    json.dumps(told.summary(), allow_nan=False)

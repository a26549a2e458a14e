"""Layer patterns: what is tried, what is chosen, and that a pattern is what it says."""

from __future__ import annotations

import pytest

import fsl_core as fsl
from fsl_core.diagnosing.patterns import Pattern, Patterns, masks_of, measure_patterns
from tests.diagnosing.parts import Blobs, learner

LAYERS = ("backbone.layers.0", "backbone.layers.1", "head")


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture(scope="module")
def found(blobs) -> Patterns:
    return measure_patterns(learner(blobs), blobs, "validation", 4, beam=2)


def test_every_mask_and_every_length_is_tried(found):
    same = [p for p in found.tried if len(set(p.steps)) == 1 and len(p.steps) == 3]
    assert {p.steps[0] for p in same} >= set(masks_of(LAYERS))
    assert {len(p.steps) for p in found.tried} == {1, 2, 3}
    assert len({p.steps for p in found.tried}) == len(found.tried)
    assert all(len(p.scores) == len(p.seconds) == 4 for p in found.tried)


def test_the_full_pattern_scores_as_the_run_does(found, blobs):
    judged = fsl.evaluate(learner(blobs), blobs, episodes=4, split="validation", progress=False)
    assert found.full.steps == (LAYERS,) * 3
    assert found.full.scores == judged.scores


def test_a_mask_scores_as_an_adapter_that_moves_these_layers(found, blobs):
    masked = next(p for p in found.tried if p.steps == (("head",),) * 3)
    of_head = fsl.evaluate(
        learner(blobs, "head"), blobs, episodes=4, split="validation", progress=False
    )
    assert masked.scores == pytest.approx(of_head.scores, abs=1e-6)


def patterns(metric: str, *pairs: tuple[float, float]) -> Patterns:
    tried = [
        Pattern(((f"layer{i}",),), [score] * 2, [seconds] * 2)
        for i, (score, seconds) in enumerate(pairs)
    ]
    return Patterns(metric, tried[0], tried, {})


def test_the_fastest_within_the_loss_is_chosen():
    found = patterns("accuracy", (0.9, 10), (0.895, 4), (0.88, 2), (0.85, 3), (0.91, 12))
    assert [p.score for p in found.front()] == pytest.approx([0.88, 0.895, 0.9, 0.91])
    assert found.chosen(0.01).time == 4
    assert found.chosen(0.03).time == 2
    assert found.chosen(0.0).time == 10
    assert found.speed_up(found.tried[1]) == 2.5
    assert found.lost(found.tried[1])[0] == pytest.approx(0.005)


def test_an_error_is_better_when_lower():
    found = patterns("mse", (1.0, 10), (1.5, 4), (1.005, 5), (0.9, 12))
    assert found.chosen(0.01).time == 5
    assert [p.score for p in found.front()] == pytest.approx([1.5, 1.005, 1.0, 0.9])


def test_how_a_pattern_is_written():
    pattern = Pattern((("backbone.blocks.3", "head"), ("head",)))
    groups = {
        "backbone.blocks.3": ["backbone.blocks.3.weight"],
        "head": ["head.weight", "head.bias"],
        "token": ["token"],
    }
    found = Patterns("accuracy", pattern, [pattern], groups)
    assert found.option(pattern) == [["backbone.blocks.3.*", "head.*"], ["head.*"]]
    assert found.option(Pattern((("token", "head"),) * 2)) == ["token", "head.*"]
    assert pattern.title() == "blocks.3 + head; head"


def test_many_layers_are_tried_as_neighbours():
    layers = [f"layer{i}" for i in range(9)]
    masks = masks_of(layers)
    assert len(masks) == 45
    assert ("layer3", "layer4") in masks
    assert ("layer3", "layer5") not in masks
    assert len(masks_of(layers[:5])) == 31


def test_one_layer_leaves_nothing_to_choose(blobs):
    with pytest.raises(ValueError, match=r"adapter: its inner steps move head alone, so there is"):
        measure_patterns(learner(blobs, "head"), blobs, "validation", 4)

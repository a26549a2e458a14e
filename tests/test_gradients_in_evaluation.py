"""Adapters that take gradients as plain torch does are judged like any other, without a graph
left."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fsl_core as fsl
from fsl_core.engine.evaluation import evaluate
from fsl_core.hooks.loader import Loaded
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task

TASK = tiny_task()


pytestmark = pytest.mark.usefixtures("float64")


class Plain(fsl.Adapter):
    """Gradient steps on a linear head, by torch.autograd.grad; with dropout in training and in
    tests."""

    name = "plain"

    def __init__(self, feature_dim: int, n_way: int = 3, dropout: float = 0.0):
        super().__init__()
        self.head, self.dropout = nn.Linear(feature_dim, n_way), dropout

    def adapt(self, backbone, support):
        return list(self.trajectory(backbone, support))[-1]

    def trajectory(self, backbone, support):
        fast = dict(self.head.named_parameters())
        yield self.predictor(backbone, fast)
        for _ in range(2):
            logits = self.predictor(backbone, fast)(support.x)
            loss = nn.functional.cross_entropy(logits, support.y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: w - 0.5 * s for (n, w), s in zip(fast.items(), slopes, strict=True)}
            yield self.predictor(backbone, fast)

    def predictor(self, backbone, fast):
        def predict(x):
            z = nn.functional.dropout(backbone(x), self.dropout)
            return functional_call(self.head, fast, (z,))

        return predict


def learner(**options) -> fsl.Learner:
    backbone = TinyBackbone()
    return fsl.Learner(backbone, Plain(backbone.feature_dim, **options)).eval()


def episode(index: int = 0) -> fsl.Episode:
    return tiny_episodes(TASK, 2).unbatch()[index]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_predictions_without_gradients_are_those_with_them(dropout: float):
    judged, given = learner(dropout=dropout), episode()
    torch.manual_seed(3)
    expected = judged.adapt(given)(given.query.x)
    with torch.no_grad():
        for known in (False, True):
            assert judged.takes_gradients is known
            torch.manual_seed(3)
            found = judged.adapt(given)(given.query.x)
            assert torch.equal(found, expected)
            assert not found.requires_grad
            assert not torch.is_grad_enabled()
    assert expected.requires_grad


def test_every_predictor_of_a_trajectory():
    judged, given = learner(), episode()
    expected = [predict(given.query.x) for predict in judged.trajectory(given)]
    with torch.no_grad():
        found = [predict(given.query.x) for predict in judged.trajectory(given)]
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad


def test_an_adapter_that_needs_none_is_called_without():
    class Watches(Plain):
        def trajectory(self, backbone, support):
            seen.append(torch.is_grad_enabled())
            return [self.predictor(backbone, dict(self.head.named_parameters()))]

    seen: list[bool] = []
    backbone = TinyBackbone()
    judged = fsl.Learner(backbone, Watches(backbone.feature_dim))
    with torch.no_grad():
        judged.adapt(episode())
    assert seen == [False]
    assert not judged.takes_gradients


def test_a_predictor_may_take_gradients_too():
    class AtTheQueries(Plain):
        def adapt(self, backbone, support):
            def predict(x):
                loss = self.head(backbone(x)).square().sum()
                (slope,) = torch.autograd.grad(loss, [self.head.weight], create_graph=True)
                return backbone(x) @ (self.head.weight - slope).T

            return predict

    backbone = TinyBackbone()
    judged, given = fsl.Learner(backbone, AtTheQueries(backbone.feature_dim)), episode()
    expected = judged.adapt(given)(given.query.x)
    with torch.no_grad():
        found = judged.adapt(given)(given.query.x)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("text", ["the support set is empty", "One of them does not require grad"])
def test_what_is_wrong_either_way_is_raised(text: str):
    class Wrong(Plain):
        def adapt(self, backbone, support):
            raise RuntimeError(text)

    with torch.no_grad(), pytest.raises(RuntimeError, match=text):
        fsl.Learner(TinyBackbone(), Wrong(5)).adapt(episode())


def test_an_evaluation_keeps_no_graph(toy_plugins: Loaded):
    made = []

    class Watched(Plain):
        def predictor(self, backbone, fast):
            made.extend(weakref.ref(w) for w in fast.values() if w.grad_fn is not None)
            return super().predictor(backbone, fast)

    with double_precision(torch.float32):
        judged = fsl.Learner(nn.Linear(2, 4), Watched(4))
        source = toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3)
        several = evaluate(judged, source, "test", 5, workers=2)
        alone = evaluate(judged, source, "test", 5)
    assert several.scores == alone.scores
    assert len(alone.after_steps) == 3
    gc.collect()
    assert made
    assert not [tensor for ref in made if (tensor := ref()) is not None]

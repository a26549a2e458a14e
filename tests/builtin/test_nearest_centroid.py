import math

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task

pytestmark = pytest.mark.usefixtures("float64")


def dense(backbone, episode, distance, temperature):
    """Log-probabilities by loops in numpy."""
    support, query = (
        backbone(items.x).detach().numpy() for items in (episode.support, episode.query)
    )
    labels = episode.support.y.numpy()
    means = [support[labels == c].mean(0) for c in range(3)]
    logits = np.empty((len(query), 3))
    for i, z in enumerate(query):
        for c, mean in enumerate(means):
            if distance == "euclidean":
                logits[i, c] = -temperature * ((z - mean) ** 2).sum()
            else:
                logits[i, c] = temperature * z @ mean / np.sqrt((z @ z) * (mean @ mean))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("learned", [False, True])
def test_probabilities_are_those_of_a_dense_computation(distance, learned):
    task, backbone = tiny_task(), TinyBackbone()
    episode = tiny_episodes(task, 1).unbatch()[0]
    adapter = NearestCentroid(task, temperature=2.5, learn_temperature=learned, distance=distance)
    found = (
        fsl.Learner(backbone, adapter)(episode.support, episode.query.x)
        .log_softmax(1)
        .detach()
        .numpy()
    )
    np.testing.assert_allclose(
        found, dense(backbone, episode, distance, 2.5), rtol=1e-12, atol=1e-12
    )


def test_float32_keeps_its_digits_far_from_the_origin():
    """Features at 1000 plus something of unit size: squaring them first would leave an error of
    about 0.1."""
    task = tiny_task()
    episode = tiny_episodes(task, 1).unbatch()[0]

    def far(dtype):
        support = fsl.LabelledSet((episode.support.x + 1000).to(dtype), episode.support.y)
        predictor = NearestCentroid(task).adapt(torch.nn.Flatten(), support)
        return predictor((episode.query.x + 1000).to(dtype)).log_softmax(1)

    torch.testing.assert_close(
        far(torch.float32).double(), far(torch.float64), rtol=1e-4, atol=1e-2
    )


def test_a_learned_temperature_stays_positive():
    adapter = NearestCentroid(tiny_task(), temperature=4.0, learn_temperature=True)
    assert adapter.log_temperature.item() == pytest.approx(math.log(4))
    assert dict(NearestCentroid(tiny_task()).named_parameters()) == {}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("regression", {}, r"nearest-centroid: a regression task\. Classification"),
        (
            "classification",
            {"temperature": 0.0},
            r"nearest-centroid: temperature: 0\.0\. A number above 0",
        ),
        (
            "classification",
            {"distance": "l1"},
            r"nearest-centroid: distance: 'l1'\. 'euclidean' or 'cosine'",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        NearestCentroid(tiny_task(kind), **options)

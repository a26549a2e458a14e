from __future__ import annotations

import pytest
import torch
from torch import nn

import fsl_core as fsl


class Transductive(fsl.Adapter):
    """Declares both further arguments, and no trajectory of its own."""

    transductive = True

    def adapt(self, backbone, support, query_x, task_id):
        shift = query_x.mean() + task_id
        return lambda x: x + shift


def episode(index: int = 7) -> fsl.Episode:
    x = torch.arange(6.0).view(3, 2)
    return fsl.Episode(
        fsl.LabelledSet(x, torch.arange(3)),
        fsl.LabelledSet(x + 1, torch.arange(3)),
        torch.tensor(index),
    )


def test_declared_arguments_are_passed():
    learner, drawn = fsl.Learner(nn.Identity(), Transductive()), episode()
    expected = drawn.query.x + drawn.query.x.mean() + 7
    assert torch.equal(learner.adapt(drawn)(drawn.query.x), expected)
    assert torch.equal(learner.trajectory(drawn)[-1](drawn.query.x), expected)
    loss, prediction = learner.objective(drawn, lambda prediction, y: prediction.sum())
    assert torch.equal(prediction, expected)
    assert loss == expected.sum()
    assert torch.equal(learner(drawn.support, drawn.query.x), expected - 7)


def test_a_batch_comes_apart_into_its_episodes():
    batch = torch.utils.data.default_collate([episode(1), episode(2)])
    first, second = batch.unbatch()
    assert (int(first.id), int(second.id)) == (1, 2)
    assert torch.equal(second.query.x, episode(2).query.x)


def test_losses_and_scores():
    classes = fsl.TaskShape("classification", 2, 1, 1, (2,), 2)
    logits, y = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    assert float(classes.score(logits, y)) == pytest.approx(2 / 3)
    assert classes.loss(logits, y) == nn.functional.cross_entropy(logits, y)
    values = fsl.TaskShape("regression", 1, 2, 2, (1,), 1)
    assert (
        values.metric,
        float(values.score(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))),
    ) == ("mse", 2.5)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_episodes_that_are_scored_together_score_as_each_by_itself(kind: str):
    shape = fsl.TaskShape(kind, 3, 1, 2, (2,), 3)
    predictions = torch.randn(4, 6, 3)
    y = torch.randint(3, (4, 6)) if kind == "classification" else torch.randn(4, 6, 3)
    each = [shape.score(p, labels) for p, labels in zip(predictions, y, strict=True)]
    torch.testing.assert_close(shape.score(predictions, y), torch.stack(each), rtol=0, atol=1e-6)


def test_what_is_not_written_says_so():
    with pytest.raises(
        NotImplementedError,
        match=r"Adapter.adapt: not written. A function of \(backbone, support\)",
    ):
        fsl.Adapter().adapt(nn.Identity(), episode().support)
    with pytest.raises(
        NotImplementedError, match="TaskWeighting.weigh: not written. A function of Outcomes"
    ):
        fsl.TaskWeighting().weigh(fsl.Outcomes(torch.ones(2)))

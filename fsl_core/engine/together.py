"""Evaluation of several episodes as one batched computation, where nothing changes by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fsl_core.episode import Episode, LabelledSet, TaskShape
from fsl_core.learner import Learner

SMALL = 1 << 18
"""Weights of a backbone up to which episodes are judged in batches: each of them, and each inner
step, may have a copy of its own."""


class Judged(NamedTuple):
    """Scores of an episode after each step, and its loss.

    predicted: (n_queries,) labels after the last step. It means nothing in a regression.
    """

    scores: list[float]
    loss: float
    predicted: Tensor


def judged_together(learner: Learner) -> bool:
    """Whether episodes are judged in batches: if the backbone is small linear layers, or none.

    None is one of features that are there already. There the time of an episode is that of calling
    small operations one by one. Elsewhere it is that of convolutions, which do not get quicker by
    weights of each episode's own.
    """
    backbone = learner.backbone
    dense = {p for m in backbone.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    small = sum(p.numel() for p in dense) <= SMALL
    return learner.adapter.vectorizable and small and dense.issuperset(backbone.parameters())


def judge_together(
    learner: Learner, batch: Episode, task: TaskShape, each_step: bool = True
) -> list[Judged]:
    """What each episode of a batch comes to; the numbers of one after the other, up to rounding.

    each_step: score the queries after each inner step too.
    """

    def judge(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        support_x, support_y, query_x, query_y, index = tensors
        unlabelled = LabelledSet(query_x, torch.zeros_like(query_y))
        episode = Episode(LabelledSet(support_x, support_y), unlabelled, index)
        predictors = learner.trajectory(episode) if each_step else [learner.adapt(episode)]
        predictions = [predict(query_x) for predict in predictors]
        scores = torch.stack([task.score(each, query_y) for each in predictions])
        return scores, task.loss(predictions[-1], query_y), predictions[-1].argmax(-1)

    scores, losses, labels = torch.func.vmap(judge)(*batch.support, *batch.query, batch.id)
    rows = zip(scores.tolist(), losses.tolist(), labels.cpu(), strict=True)
    return [Judged(*row) for row in rows]

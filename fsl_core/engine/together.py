"""Evaluation of several episodes as one batched computation, where nothing changes by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fsl_core.adapter import Adapter
from fsl_core.episode import Episode, LabelledSet, TaskShape
from fsl_core.learner import Learner


class Judged(NamedTuple):
    """Scores of an episode after each step, and its loss.

    predicted: (n_queries,) labels after the last step. It means nothing in a regression.
    """

    scores: list[float]
    loss: float
    predicted: Tensor


def judged_together(learner: Learner, task: TaskShape) -> bool:
    """Whether episodes are judged in batches: closed forms on features that are there already.

    They are those of a frozen backbone, or the items themselves. There the time of an episode is
    that of calling small operations one by one. Elsewhere it is that of the backbone, which does
    not get quicker by this. An adapter that takes inner steps, or overrides `trajectory`, is judged
    one episode at a time.
    """
    adapter = type(learner.adapter)
    own = (adapter.inner_problem, adapter.trajectory) == (Adapter.inner_problem, Adapter.trajectory)
    features = next(learner.backbone.parameters(), None) is None
    return own and features and learner.adapter.vectorizable and task.kind == "classification"


def judge_together(learner: Learner, batch: Episode, task: TaskShape) -> list[Judged]:
    """What each episode of a batch comes to; the numbers of one after the other, up to rounding."""

    def judge(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        support_x, support_y, query_x, query_y, index = tensors
        unlabelled = LabelledSet(query_x, torch.zeros_like(query_y))
        episode = Episode(LabelledSet(support_x, support_y), unlabelled, index)
        prediction = learner.adapt(episode)(query_x)
        loss = task.loss(prediction, query_y)
        return task.score(prediction, query_y), loss, prediction.argmax(-1)

    scores, losses, labels = torch.func.vmap(judge)(*batch.support, *batch.query, batch.id)
    rows = zip(scores.tolist(), losses.tolist(), labels.cpu(), strict=True)
    return [Judged([score], loss, predicted) for score, loss, predicted in rows]

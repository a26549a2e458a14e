"""The meta-gradient of a meta-batch, one task after another: sum_i weights[i] * grad loss_i."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fsl_core.episode import Episode, Learner, Loss, Outcomes, TaskWeighting


class MetaBatchResult(NamedTuple):
    """What one meta-batch gave; the meta-gradient itself is in `.grad` of the learner's (and weighting's) parameters.

    losses:      (meta_batch_size,) objectives, detached.
    predictions: (meta_batch_size, n_queries, output_dim), detached.
    weights:     (meta_batch_size,), detached.
    """

    losses: Tensor
    predictions: Tensor
    weights: Tensor


def meta_gradient(learner: Learner, weighting: TaskWeighting, episodes: Episode, loss: Loss) -> MetaBatchResult:
    """Compute a meta-batch and set `.grad`; gradients already there are dropped.

    episodes: a batch, (meta_batch_size,) in front.    loss: (prediction, labels) -> scalar.

    Where the weights depend on nothing, gradients are accumulated task by task. Else the tasks' gradients are kept as one
    (meta_batch_size, P) matrix, as `TaskWeighting.weigh` sees it.
    """
    parameters = [p for p in learner.parameters() if p.requires_grad]
    for parameter in (*parameters, *weighting.parameters()):
        parameter.grad = None
    tasks = episodes.unbatch()
    if weighting.needs:
        return _weigh_gradients(learner, weighting, tasks, loss, parameters)
    weights = weighting.weigh(Outcomes(losses=torch.zeros(len(tasks), device=episodes.id.device))).detach()
    losses, predictions = [], []
    for weight, task in zip(weights, tasks, strict=True):
        task_loss, prediction = learner.objective(task, loss)
        (weight * task_loss).backward()
        losses.append(task_loss.detach())
        predictions.append(prediction.detach())
    return MetaBatchResult(torch.stack(losses), torch.stack(predictions), weights)


def _weigh_gradients(
    learner: Learner, weighting: TaskWeighting, tasks: list[Episode], loss: Loss, parameters: list[Tensor]
) -> MetaBatchResult:
    losses, predictions, rows = [], [], []
    for task in tasks:
        task_loss, prediction = learner.objective(task, loss)
        gradients = torch.autograd.grad(task_loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
        losses.append(task_loss.detach())
        predictions.append(prediction.detach())
    values, matrix = torch.stack(losses), torch.stack(rows)
    weights = weighting.weigh(Outcomes(values, matrix if "gradients" in weighting.needs else None))
    if weights.requires_grad:
        (weights * values).sum().backward()  # reaches the weighting's own parameters only: values are detached
    combined = (weights.detach() @ matrix).split([p.numel() for p in parameters])
    for parameter, gradient in zip(parameters, combined, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return MetaBatchResult(values, torch.stack(predictions), weights.detach())

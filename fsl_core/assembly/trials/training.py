"""Training, in a trial: the objective and meta-gradient of a task, alone and after another one."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from fsl_core.adapter import Adapter
from fsl_core.assembly.trials.kept import Moved, refuse_lost, watching
from fsl_core.assembly.trials.trial import TOLERANCE, Trial, cloned
from fsl_core.data.seeding import seed_torch
from fsl_core.engine import soundness
from fsl_core.episode import Episode
from fsl_core.errors import FslError
from fsl_core.learner import Learner


class _Outcome(NamedTuple):
    """What one task came to."""

    loss: Tensor
    prediction: Tensor


def try_training(trial: Trial, moved: set[str]) -> Moved:
    """Objective and meta-gradient, of one task and after another.

    moved: names of what a forward pass of the backbone moves, without `backbone.`.
    Returns what of that the objective leaves as it was, and the learner as training leaves it.
    """
    first, second = trial.episodes
    learner = trial.beginner()
    moved = {f"backbone.{name}" for name in moved}
    with watching(learner) as seen:
        before = soundness.copied(soundness.kept(learner))
        alone = _objective(trial, learner, first, moved=moved)
    moved |= seen
    lost = moved - set(soundness.changed(before, soundness.kept(learner)))

    after_another = trial.beginner()
    _objective(trial, after_another, second, gradient=False)
    between = soundness.copied(soundness.hidden(after_another))
    again = _objective(trial, after_another, first, gradient=False)
    if not _alike(again, alone):
        _refuse_memory(trial, after_another, first, alone)
    drifting = soundness.changed(between, soundness.hidden(after_another))

    if type(learner.adapter).on_progress is not Adapter.on_progress:
        after_another.on_progress(1.0)  # what follows a warm-up
        _objective(trial, after_another, first, gradient=False)
    return Moved(lost, set(drifting), after_another)


def _objective(
    trial: Trial,
    learner: Learner,
    episode: Episode,
    gradient: bool = True,
    moved: Collection[str] = (),
) -> _Outcome:
    """The objective of a task; moved: what forward passes move, which torch.func refuses."""
    given, weights = cloned(episode), _trained_values(learner)
    seed_torch("preflight")  # the same draws, such as of dropout, whichever task came before

    def call() -> object:
        try:
            return learner.objective(episode, lambda prediction, y: _loss(trial, prediction, y))
        except RuntimeError as error:
            if moved and "mutate a captured Tensor" in str(error):
                refuse_lost(trial, _first_float(learner, moved))
            raise

    part = _author(learner)
    found = trial.call(part, "objective", call)
    if not (isinstance(found, tuple) and len(found) == 2):
        trial.refuse(
            part,
            f"objective returned a {type(found).__name__}. A pair: loss and prediction",
        )
    loss, prediction = found
    shape = (len(episode.query.x), trial.task.output_dim)
    trial.require(part, soundness.wrong_output("predictions", prediction, shape, None))
    trial.require(part, soundness.wrong_loss(loss))
    trial.require_untouched(episode, given, weights, learner, "objective")
    if gradient:
        _meta_gradient(trial, learner, loss)
    return _Outcome(loss.detach(), prediction.detach())


def _loss(trial: Trial, prediction: Tensor, y: Tensor) -> Tensor:
    """The task's loss, with a shape in place of what torch says of one that it cannot take."""
    try:
        return trial.task.loss(prediction, y)
    except Exception as error:
        shape = (len(y), trial.task.output_dim)
        wrong = soundness.wrong_output("predictions", prediction, shape, None)
        if wrong:
            raise FslError(wrong) from error
        raise


def _meta_gradient(trial: Trial, learner: Learner, loss: Tensor) -> None:
    """It reaches a parameter and is finite."""
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}

    def call() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, list(trained.values()), allow_unused=True)

    part = _author(learner)
    found = trial.call(part, "meta-gradient", call) if loss.requires_grad else ()
    gradients = dict(zip(trained, found, strict=False))
    if not any(g is not None for g in gradients.values()):
        trial.refuse(
            part,
            "the loss depends on none of the parameters that training would move. Nothing "
            "detached and no torch.no_grad() on the way from the weights to the loss",
        )
    for name, gradient in gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            trial.refuse(
                part,
                f"the meta-gradient of {name} is not finite. Safe square roots, logarithms and "
                "divisions, or smaller inner steps",
            )


def _author(learner: Learner) -> str:
    """Who wrote the objective: the adapter, if its own is followed."""
    estimate = learner.hypergradient
    return "adapter" if estimate is None or estimate.name == "unrolled" else "hypergradient"


def _refuse_memory(trial: Trial, learner: Learner, episode: Episode, alone: _Outcome) -> None:
    """A task changed what the next one gives. What a checkpoint holds may do so.

    So the buffers and weights are put back first. Only if the task still gives another loss, it
    is something else that remembers.
    """
    found = soundness.changed(soundness.hidden(trial.experiment.learner), soundness.hidden(learner))
    learner.load_state_dict(trial.experiment.learner.state_dict())
    learner.on_progress(0.0)
    if _alike(_objective(trial, learner, episode, gradient=False), alone):
        return
    names = f" ({', '.join(found)})" if found else ""
    trial.refuse(
        "adapter" if all(name.startswith("adapter.") for name in found) else "backbone",
        f"a task gives another loss once another task came before it: state is kept between "
        f"tasks{names}, and no checkpoint holds it. What is learned of a task in the predictor "
        "alone, or in a buffer (register_buffer)",
    )


def _first_float(learner: Learner, names: Collection[str]) -> str:
    state = soundness.kept(learner)
    return min(names, key=lambda name: (not state[name].is_floating_point(), name))


def _trained_values(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad}


def _alike(found: _Outcome, expected: _Outcome) -> bool:
    return soundness.close(found.loss, expected.loss, TOLERANCE) and soundness.close(
        found.prediction, expected.prediction, TOLERANCE
    )

"""Evaluation, in a trial: episodes are judged independently, and nothing changes on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsl_core.assembly.trials.trial import TOLERANCE, Trial, cloned
from fsl_core.data.seeding import seed_torch
from fsl_core.engine import soundness
from fsl_core.episode import Episode, Predictor
from fsl_core.learner import Learner


def try_evaluation(trial: Trial) -> None:
    """As `evaluate` does it: in evaluation mode, without gradients, every predictor."""
    first, second = trial.test_episodes
    learner = trial.judged()
    expected = _predictions(trial, learner, first, "trajectory")[-1]
    _predictions(trial, learner, second, "adapt")
    (found,) = _predictions(trial, learner, first, "adapt")
    if soundness.close(found, expected, TOLERANCE):
        return
    # They differ, either because of the task between or because the two methods differ. A
    # learner that has seen no other task tells which.
    (alone,) = _predictions(trial, trial.judged(), first, "adapt")
    if soundness.close(alone, expected, TOLERANCE):
        trial.refuse(
            "adapter",
            "in evaluation a task gives other predictions once another task came before it. "
            "Nothing kept from one task to the next, randomness from torch's global generator",
        )
    trial.refuse(
        "adapter",
        "the last predictor of trajectory is not that of adapt: validation would judge one and "
        "the test the other. Both overridden alike, or adapt alone",
    )


def _predictions(trial: Trial, learner: Learner, episode: Episode, method: str) -> list[Tensor]:
    """Of the predictors of `adapt` or `trajectory`; nothing may change on the way."""
    before, given = soundness.snapshot(learner, "the learner"), cloned(episode)
    seed_torch("preflight")
    found = _predict(trial, learner, episode, method)
    trial.require_untouched(episode, given, {}, learner, "evaluation")
    changed = soundness.changed(before, soundness.snapshot(learner, "the learner"))
    if changed:
        trial.refuse(
            "adapter",
            f"an evaluation changes {changed[0]}. Nothing: episodes are judged independently",
        )
    return found


@torch.no_grad()
def _predict(trial: Trial, learner: Learner, episode: Episode, method: str) -> list[Tensor]:
    def predictors() -> Sequence[Predictor]:
        return [learner.adapt(episode)] if method == "adapt" else learner.trajectory(episode)

    shape = (len(episode.query.x), trial.test_task.output_dim)
    adapted = trial.call("adapter", f"{method} in evaluation", predictors)
    if not adapted:
        trial.refuse("adapter", "trajectory is empty. At least the predictor of adapt")
    return [_predicted(trial, predict, episode, shape) for predict in adapted]


def _predicted(
    trial: Trial, predict: Predictor, episode: Episode, shape: tuple[int, int]
) -> Tensor:
    found = trial.call("adapter", "predictor in evaluation", lambda: predict(episode.query.x))
    wrong = soundness.wrong_output("predictions in evaluation", found, shape, None)
    trial.require("adapter", wrong)
    return found

"""What every searcher has to keep, however it chooses."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fsl_core as fsl

SPACE: dict[str, fsl.Range | fsl.Choices] = {
    "outer.optimizer.lr": fsl.Range(1e-4, 1e-1, log=True),
    "adapter.temperature": fsl.Range(-1.0, 2.5),
    "adapter.share": fsl.Range(0.0, 1.0, step=0.25),
    "adapter.steps": fsl.Range(1, 6, whole=True),
    "adapter.width": fsl.Range(8, 512, log=True, whole=True),
    "backbone.hidden": fsl.Choices(([8], [8, 8], None)),
}
STUDY = fsl.Study("method", SPACE, seed=0, trials=16, steps=30, metric="accuracy")
BATCH = 4


class SearcherContract:
    """Inherit as `class TestMine(SearcherContract)` and write `make`.

    A search of sixteen trials in batches of four is played, with made-up scores.
    """

    def make(self) -> fsl.Searcher:
        """A fresh searcher."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> Searcher"
        )

    def test_claims(self) -> None:
        searcher = self.make()
        assert isinstance(searcher, fsl.Searcher), (
            f"make: {type(searcher).__name__}. A subclass of fsl_core.Searcher"
        )
        name = getattr(searcher, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under `search.searcher`"
        )
        note = searcher.note(STUDY)
        assert isinstance(note, str), f"note: {note!r}. One line, or an empty text"

    @pytest.mark.parametrize("metric", ["accuracy", "mse"])
    def test_proposals_lie_in_the_space(self, metric: str) -> None:
        for trial in played(self.make(), replace(STUDY, metric=metric)):
            wrong = {key: v for key, v in trial.parameters.items() if v not in SPACE[key]}
            assert not wrong, f"propose: {wrong}. Values within the space"

    def test_answers_follow_from_arguments_alone(self) -> None:
        """Asked again by a process that knows nothing of the first, it gives the same."""
        trials = played(self.make(), STUDY)
        for number in (0, 1, BATCH, len(trials) - 1):
            known = as_asked(trials, number)
            before, state = copy.deepcopy(known), random_states()
            again = fitted(self.make().propose(STUDY, known))
            assert again == trials[number].parameters, (
                f"propose: trial {number} differs when it is asked for again. A function of the "
                "arguments, with random numbers from study.random_seed"
            )
            assert known == before, "propose: has changed the trials. Read them"
            assert state == random_states(), (
                "propose: moved a global random state. A generator of its own"
            )
        scores = {10: 0.2, 20: 0.3}
        told = [self.make().prune(STUDY, trials, scores) for _ in range(2)]
        assert told in ([True, True], [False, False]), f"prune: {told}. True or False, and the same"

    def test_another_seed_proposes_another_trial(self) -> None:
        proposed = [fitted(self.make().propose(replace(STUDY, seed=seed), [])) for seed in range(4)]
        assert any(other != proposed[0] for other in proposed[1:]), (
            f"propose: {proposed[0]} for every seed. Random numbers from study.random_seed"
        )

    def test_records_are_written_again(self, tmp_path: Path) -> None:
        """What a search that was killed has written does not keep it from going on."""
        trials = played(self.make(), STUDY)
        self.make().record(tmp_path, STUDY, trials[:BATCH])
        self.make().record(tmp_path, STUDY, trials)
        self.make().record(tmp_path, replace(STUDY, name="another"), trials[:BATCH])
        self.make().record(tmp_path, STUDY, trials)


def played(searcher: fsl.Searcher, study: fsl.Study) -> list[fsl.Trial]:
    """All trials of a search, with scores that depend on the parameters."""
    trials: list[fsl.Trial] = []
    while len(trials) < study.trials:
        batch: list[fsl.Trial] = []
        for number in range(len(trials), len(trials) + BATCH):
            proposed = searcher.propose(study, [*trials, *batch])
            batch.append(fsl.Trial(number, fitted(proposed)))
        trials += [_ended(searcher, study, trials, trial) for trial in batch]
    return trials


def _ended(
    searcher: fsl.Searcher, study: fsl.Study, told: list[fsl.Trial], trial: fsl.Trial
) -> fsl.Trial:
    if trial.number == 2:  # a loss that is not finite
        return replace(trial, state="failed")
    score = float(trial.parameters["adapter.steps"]) / 10 + trial.number / 100
    scores = {10: score / 2, 20: score, 30: score}
    for until in (10, 20):
        so_far = {step: value for step, value in scores.items() if step <= until}
        if searcher.prune(study, told, so_far):
            return replace(trial, state="pruned", scores=so_far)
    return replace(trial, state="complete", scores=scores, score=score)


def as_asked(trials: list[fsl.Trial], number: int) -> list[fsl.Trial]:
    """The trials before this one, as they were known when it was proposed."""
    first = number - number % BATCH
    asked = [fsl.Trial(t.number, t.parameters) for t in trials[first:number]]
    return [*trials[:first], *asked]


def fitted(proposed: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are tried, as a search rounds them."""
    assert proposed.keys() == SPACE.keys(), f"propose: {sorted(proposed)}. A value for each key"
    among = {key: (value, SPACE[key]) for key, value in proposed.items()}
    return {
        key: space.fitted(value) if isinstance(space, fsl.Range) and value in space else value
        for key, (value, space) in among.items()
    }


def random_states() -> list[str]:
    """The states of the generators that programs share, as texts to compare."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())
    return [str(state) for state in states]

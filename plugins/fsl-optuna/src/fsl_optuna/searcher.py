"""Parameters proposed by Optuna."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import fsl_core as fsl

if TYPE_CHECKING:  # it takes a second to import, which commands that search nothing do not wait for
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.journal"
"""Optuna's JournalStorage in the folder of a search: a study for each method."""


class Optuna(fsl.Searcher):
    """A sampler of Optuna proposes trials, and a pruner ends those that fall behind.

    Before each proposal the study is made again from the trials, with a sampler seeded by the
    search's seed and the trial's number. So nothing has to be kept between two proposals, and a
    search that was killed goes on to the same trials, with one version of Optuna.

    A pruner compares the best validation of a trial so far with those that complete trials of
    earlier batches had at that step. Pruners whose decisions depend on the order in which running
    trials report, as successive halving and Hyperband, are not offered.

    Source: Akiba et al. 2019, arXiv:1907.10902; TPE: Watanabe 2023, arXiv:2304.11127.
    """

    name = "optuna"

    def __init__(
        self,
        sampler: Annotated[
            Literal["tpe", "gp", "random"],
            Field(description="gp: a Gaussian process, which needs scipy"),
        ] = "tpe",
        startup: Annotated[
            int, Field(ge=1, description="random trials before the sampler follows scores")
        ] = 10,
        pruner: Annotated[
            Literal["none", "median", "percentile"],
            Field(description="ends trials that are worse than this of the complete ones"),
        ] = "none",
        percentile: Annotated[
            float, Field(gt=0, lt=100, description="of trials that go on, for pruner percentile")
        ] = 25.0,
        prune_after: Annotated[
            int, Field(ge=1, description="complete trials before any is pruned")
        ] = 5,
        warmup: Annotated[
            int, Field(ge=0, description="outer steps before which no trial is pruned")
        ] = 0,
    ):
        if sampler == "gp" and importlib.util.find_spec("scipy") is None:
            raise ValueError("sampler: gp, without scipy. pip install 'fsl-optuna[gp]'")
        self._sampler, self._startup = sampler, startup
        self._percentile = {"none": None, "median": 50.0, "percentile": percentile}[pruner]
        self._prune_after, self._warmup = prune_after, warmup

    def propose(self, study: fsl.Study, trials: Sequence[fsl.Trial]) -> Mapping[str, Any]:
        sampler = self._seeded(study.random_seed("optuna", len(trials)))
        asked = _rebuilt(study, trials, sampler=sampler).ask(_distributions(study))
        return {key: _value(asked.params[key], among) for key, among in study.space.items()}

    def prune(
        self, study: fsl.Study, trials: Sequence[fsl.Trial], scores: Mapping[int, float]
    ) -> bool:
        if self._percentile is None:
            return False
        running = _create_trial(state="RUNNING", intermediate_values=dict(scores))
        return bool(self._pruner(self._percentile).prune(_rebuilt(study, trials), running))

    def record(self, folder: Path, study: fsl.Study, trials: Sequence[fsl.Trial]) -> None:
        """Add what is new to the JournalStorage of the folder."""
        storage = _journal(folder.absolute() / JOURNAL)
        kept = _optuna().create_study(
            storage=storage,
            study_name=study.name,
            direction=_direction(study),
            load_if_exists=True,
        )
        for trial in trials[len(kept.get_trials(deepcopy=False)) :]:
            kept.add_trial(_frozen(study, trial))

    def note(self, study: fsl.Study) -> str:
        if self._sampler == "random" or study.trials > self._startup:
            return ""
        return f"all {study.trials} trials are random: {self._sampler} begins after {self._startup}"

    def _seeded(self, seed: int) -> BaseSampler:
        samplers = _optuna().samplers
        if self._sampler == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        if self._sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self._startup)
        return samplers.RandomSampler(seed=seed)

    def _pruner(self, percentile: float) -> BasePruner:
        return _optuna().pruners.PercentilePruner(
            percentile, n_startup_trials=self._prune_after, n_warmup_steps=self._warmup
        )


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study that it makes
    return optuna


def _rebuilt(study: fsl.Study, trials: Sequence[fsl.Trial], **options: Any) -> optuna.Study:
    """The study in memory."""
    made = _optuna().create_study(direction=_direction(study), **options)
    made.add_trials([_frozen(study, trial) for trial in trials])
    return made


def _direction(study: fsl.Study) -> str:
    return "maximize" if study.higher_is_better else "minimize"


def _distributions(study: fsl.Study) -> dict[str, BaseDistribution]:
    return {key: _distribution(among) for key, among in study.space.items()}


def _distribution(among: fsl.Range | fsl.Choices) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(among, fsl.Choices):
        return CategoricalDistribution([json.dumps(value) for value in among.values])
    if among.whole:
        step = 1 if among.step is None else int(among.step)
        return IntDistribution(int(among.low), int(among.high), log=among.log, step=step)
    return FloatDistribution(among.low, among.high, log=among.log, step=among.step)


def _value(proposed: Any, among: fsl.Range | fsl.Choices) -> Any:
    return json.loads(proposed) if isinstance(among, fsl.Choices) else proposed


def _frozen(study: fsl.Study, trial: fsl.Trial) -> FrozenTrial:
    states = {"running": "RUNNING", "complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    return _create_trial(
        state=states[trial.state],
        value=trial.score,
        params={
            key: json.dumps(value) if isinstance(study.space[key], fsl.Choices) else value
            for key, value in trial.parameters.items()
        },
        distributions=_distributions(study),
        intermediate_values=dict(trial.scores),
    )


def _create_trial(state: str, **given: Any) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    _optuna()
    return create_trial(state=TrialState[state], **given)


def _journal(path: Path) -> Any:
    """The storage, which this process alone writes: whoever left a lock or half a line is dead."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.is_file():
        written = path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            path.write_bytes(written[:whole])
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))

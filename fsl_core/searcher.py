"""A searcher: which parameters are tried next, and which trials are not worth going on with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

DIGITS = 6
"""Significant digits of a number that is tried, so that recipes are readable."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    log:   spread evenly over orders of magnitude.
    step:  from each number to the next; None: any number between, or any whole one.
    whole: whole numbers alone.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def fitted(self, value: float) -> float:
        """The number that is tried in place of `value`: rounded, and within the range."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * min(steps, round((value - self.low) / self.step))
        if self.whole:
            return min(int(self.high), max(int(self.low), round(value)))
        return min(float(self.high), max(float(self.low), float(f"{value:.{DIGITS}g}")))

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number = float(value)
        return self.low <= number <= self.high and (not self.whole or number.is_integer())


@dataclass(frozen=True)
class Choices:
    """Values in no order, each of any type that a recipe may hold."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and what became of it.

    parameters: by key path, such as `adapter.inner_lr`.
    scores: of its validations, by outer step; of a pruned one, those up to that decision.
    score:  of the weights that would be judged, if it is complete.
    """

    number: int
    parameters: Mapping[str, Any]
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    scores: Mapping[int, float] = field(default_factory=dict)
    score: float | None = None


@dataclass(frozen=True)
class Study:
    """What is searched for one method.

    space:  what may be tried, by key path.
    trials: how many there will be.
    steps:  outer steps of a trial.
    metric: of the scores, such as `accuracy` or `mse`.
    """

    name: str
    space: Mapping[str, Range | Choices]
    seed: int
    trials: int
    steps: int
    metric: str

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "mse"

    def random_seed(self, *what: object) -> int:
        """A seed below 2^32 that depends on the seed of the search and on `what`, nothing else."""
        text = " ".join(map(str, (self.seed, *what))).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


class Searcher:
    """Proposes the parameters of trials, and says which trials to end early.

    Subclasses set `name` and write `propose`; the options are the arguments of the constructor.
    Both methods are functions of their arguments alone, with random numbers from
    `study.random_seed`. A search that was killed asks again, and has to get the same answers.
    """

    name: ClassVar[str]

    def propose(self, study: Study, trials: Sequence[Trial]) -> Mapping[str, Any]:
        """A value for each key path of `study.space`, for the trial after `trials`.

        trials: all before it, in order. Those of the same batch are `running`, without scores.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.propose: not written. A method propose(self, study, trials)"
        )

    def prune(self, study: Study, trials: Sequence[Trial], scores: Mapping[int, float]) -> bool:
        """Whether a trial with these validation scores so far, by outer step, is to end now.

        trials: those of earlier batches.
        """
        return False

    def record(self, folder: Path, study: Study, trials: Sequence[Trial]) -> None:
        """Write what other tools read into the folder of the search. Called after each batch.

        Nothing is read from there: the run directories hold the search.
        """

    def note(self, study: Study) -> str:
        """What a user should know before the search begins, in one line, or ""."""
        return ""

"""Layer patterns: which layers an inner loop has to move, and how long that takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, median
from typing import Any

import torch

from fsl_core.data.seeding import seed_torch
from fsl_core.data.source import EpisodeSource, Split
from fsl_core.data.work import Advance, reported
from fsl_core.diagnosing.layers import layers_of
from fsl_core.diagnosing.reuse import frozen_episodes
from fsl_core.engine.evaluation import TIMED_EPISODES, mean_and_interval
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.episode import Episode, TaskShape
from fsl_core.errors import OptionError
from fsl_core.inner import InnerProblem
from fsl_core.learner import Learner

Mask = tuple[str, ...]
"""The layers that a step moves, such as `backbone.blocks.3` and `head`."""
Steps = tuple[Mask, ...]

ALL_MASKS = 8
"""Layers up to which every mask is tried; of more, those of neighbouring layers."""


@dataclass
class Pattern:
    """What each step moves, the score on each episode, and the times to adapt.

    seconds: of the first episodes, one at a time, all patterns in turn on each.
    """

    steps: Steps
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        return fmean(self.scores)

    @property
    def time(self) -> float:
        return median(self.seconds)

    def title(self) -> str:
        """Such as `blocks.3 + head, 5 steps`."""
        masks = [" + ".join(name.removeprefix("backbone.") for name in mask) for mask in self.steps]
        if len(set(masks)) == 1:
            return f"{masks[0]}, {len(masks)} step{'s' * (len(masks) > 1)}"
        return "; ".join(masks)


@dataclass(frozen=True)
class Patterns:
    """All that were tried; `full` is what the run itself does, and is among them."""

    metric: str
    full: Pattern
    tried: list[Pattern]
    groups: dict[str, list[str]]

    def better(self, a: float, b: float) -> float:
        """By how much a score is better than another."""
        return a - b if self.metric == "accuracy" else b - a

    def front(self) -> list[Pattern]:
        """Those that no faster pattern equals in score, fastest first."""
        return _front(self.tried, self.better)

    def chosen(self, within: float) -> Pattern:
        """The fastest one that loses at most `within` of the score of `full`."""
        fitting = [p for p in self.tried if self.better(self.full.score, p.score) <= within]
        return min(fitting, key=lambda pattern: pattern.time)

    def speed_up(self, pattern: Pattern) -> float:
        """The median over episodes of how many times faster than `full` it adapts."""
        pairs = zip(self.full.seconds, pattern.seconds, strict=True)
        return median(slow / fast for slow, fast in pairs)

    def lost(self, pattern: Pattern) -> tuple[float, float]:
        """The score that is lost against `full`, paired by episode, and its 95 % interval."""
        pairs = zip(self.full.scores, pattern.scores, strict=True)
        return mean_and_interval([self.better(one, other) for one, other in pairs])

    def option(self, pattern: Pattern) -> str | list[str] | list[list[str]]:
        """The pattern as `adapted` and `test_adapted` of an adapter write it."""
        steps = [self._names(mask) for mask in pattern.steps]
        return steps[0] if all(step == steps[0] for step in steps) else steps

    def _names(self, mask: Mask) -> list[str]:
        """Shell patterns: one for a layer, or the name of a weight that belongs to none."""
        return [layer if self.groups[layer] == [layer] else f"{layer}.*" for layer in mask]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pattern, fastest first."""
        on_front = {id(pattern) for pattern in self.front()}
        return [
            {
                "pattern": pattern.title(),
                "steps": len(pattern.steps),
                self.metric: pattern.score,
                "lost": self.lost(pattern)[0],
                "interval": self.lost(pattern)[1],
                "seconds": pattern.time,
                "speed_up": self.speed_up(pattern),
                "front": id(pattern) in on_front,
                "option": self.option(pattern),
            }
            for pattern in sorted(self.tried, key=lambda pattern: pattern.time)
        ]


def measure_patterns(
    learner: Learner | Fitting,
    source: EpisodeSource,
    split: Split,
    episodes: int,
    seed: int = 0,
    task: TaskShape | None = None,
    *,
    beam: int = 0,
) -> Patterns:
    """Try masks of layers on frozen episodes: the same for every step, and then one for each step.

    beam: how many sequences of masks go on from each step to the next; 0: none are tried. Their
          masks are those of the front of the first search; sequences of every length are judged.
    Raises OptionError for an adapter without an inner problem, or one that moves a single layer.
    After the abstract of Khabarlak 2022, arXiv:2206.05930, whose text was not available: what is
    enumerated and how is this project's choice.
    """
    fitted, task = as_fitting(learner), task or source.task
    fitted.learner.eval()
    drawn = [
        (fitted(shape), episode)
        for shape, episode in frozen_episodes(source, split, episodes, seed, task)
    ]
    search = _Search(drawn, task, (seed, split))
    groups = search.groups()
    masks = masks_of(list(groups))
    count = search.steps
    full = Pattern((tuple(groups),) * count)
    same = [Pattern((mask,) * count) for mask in masks if mask != tuple(groups)]
    search.judge([full, *same], groups)
    found = Patterns(task.metric, full, [full, *same], groups)
    if beam:
        found.tried.extend(_beam(search, found, beam))
    return found


def masks_of(layers: Sequence[str]) -> list[Mask]:
    """Every mask of up to ALL_MASKS layers; of more, those of neighbouring layers.

    >>> masks_of(["a", "b"])
    [('a',), ('b',), ('a', 'b')]
    """
    n = len(layers)
    if n <= ALL_MASKS:
        return [mask for size in range(1, n + 1) for mask in combinations(layers, size)]
    ends = combinations(range(n + 1), 2)
    return [tuple(layers[start:end]) for start, end in ends]


def _front(patterns: Iterable[Pattern], better: Callable[[float, float], float]) -> list[Pattern]:
    front: list[Pattern] = []
    for pattern in sorted(patterns, key=lambda p: (p.time, -better(p.score, 0.0))):
        if not front or better(pattern.score, front[-1].score) > 0:
            front.append(pattern)
    return front


def _beam(search: _Search, found: Patterns, width: int) -> list[Pattern]:
    """Sequences of masks of the front, one step longer at a time."""
    masks = list(dict.fromkeys(p.steps[0] for p in [*found.front(), found.full]))
    kept: list[Steps] = [()]
    tried: list[Pattern] = []
    for _ in range(search.steps):
        longer = [Pattern((*steps, mask)) for steps in kept for mask in masks]
        known = {pattern.steps for pattern in found.tried}
        new = [pattern for pattern in longer if pattern.steps not in known]
        search.judge(new, found.groups, beside=found.full)
        tried += new
        level = [*new, *(p for p in found.tried if p.steps in {each.steps for each in longer})]
        best = sorted(_front(level, found.better), key=lambda p: -found.better(p.score, 0.0))
        kept = [pattern.steps for pattern in best[:width]]
    return tried


class _Search:
    """Patterns judged on the same episodes."""

    def __init__(
        self,
        drawn: Sequence[tuple[Learner, Episode]],
        task: TaskShape,
        seeds: tuple[int, Split],
    ):
        self.drawn, self.task, self.seeds = drawn, task, seeds
        self.problem = _problem_of(*drawn[0])
        self.steps = self.problem.steps
        if self.steps < 1:
            raise OptionError("no inner step in evaluation. At least one, to choose layers of")

    def groups(self) -> dict[str, list[str]]:
        """The names of the weights that steps move, by layer."""
        layers = [f"backbone.{name}" for name in layers_of(self.drawn[0][0].backbone)]
        moved = {n for k in range(self.steps) for n in self.problem.moved(k)}
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.problem.start:
            own = (layer for layer in layers if name.startswith(f"{layer}."))
            at_top = "head" if name.startswith("head.") else name
            if name in moved:
                groups[next(own, at_top)].append(name)
        if len(groups) < 2:
            raise OptionError(
                f"adapter: its inner steps move {', '.join(groups)} alone, so there is nothing to "
                "choose. One that adapts several layers"
            )
        return dict(groups)

    @torch.no_grad()
    def judge(
        self,
        patterns: Sequence[Pattern],
        groups: dict[str, list[str]],
        beside: Pattern | None = None,
    ) -> None:
        """Score each pattern on every episode, and time it on the first ones.

        beside: one that was judged before; times are put in proportion to what it takes now.
        """
        what = f"judging {len(patterns)} patterns"
        with reported(what, len(patterns) * len(self.drawn)) as advance:
            for number in range(len(self.drawn)):
                self._judge_on(number, patterns, groups, beside, advance)

    def _judge_on(
        self,
        number: int,
        patterns: Sequence[Pattern],
        groups: dict[str, list[str]],
        beside: Pattern | None,
        advance: Advance,
    ) -> None:
        (learner, episode), drift = self.drawn[number], 1.0
        timed = number < TIMED_EPISODES
        if timed and beside is not None:
            drift = beside.seconds[number] / self._adapted(learner, episode, beside, groups)[1]
        for pattern in patterns:
            score, seconds = self._adapted(learner, episode, pattern, groups)
            pattern.scores.append(score)
            if timed:
                pattern.seconds.append(seconds * drift)
            advance(1)

    def _adapted(
        self, learner: Learner, episode: Episode, pattern: Pattern, groups: dict[str, list[str]]
    ) -> tuple[float, float]:
        names = [[name for layer in mask for name in groups[layer]] for mask in pattern.steps]
        seed_torch("evaluation", *self.seeds, int(episode.id))
        started = time.perf_counter()
        predict = learner.trajectory_of(episode, lambda problem: problem.moving(names))[-1]
        if episode.support.x.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return float(self.task.score(predict(episode.query.x), episode.query.y)), seconds


def _problem_of(learner: Learner, episode: Episode) -> InnerProblem:
    found: list[InnerProblem] = []

    def keep(problem: InnerProblem) -> InnerProblem:
        found.append(problem)
        return problem

    with torch.no_grad():
        learner.trajectory_of(episode, keep)
    return found[-1]

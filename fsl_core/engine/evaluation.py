"""Judging a learner: the mean score over frozen episodes, with its interval."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any, TypedDict

import torch
from torch import Tensor

from fsl_core.data.groups import Group, in_order, unbatch
from fsl_core.data.seeding import seed_torch
from fsl_core.data.source import DRAWN_TOGETHER, EpisodeSource, Split
from fsl_core.engine.confusion import Confusion, Counts
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.engine.together import Judged, judge_together, judged_together
from fsl_core.engine.traces import NotCopiableError, Traces, find_traces
from fsl_core.engine.workers import Workers
from fsl_core.episode import Episode, TaskShape, Varies
from fsl_core.errors import RunError
from fsl_core.learner import Learner

TIMED_EPISODES = 20


def mean_and_interval(scores: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval over episodes, as the field reports it.

    That is 1.96 * standard deviation / sqrt(n).
    """
    return fmean(scores), 1.96 * stdev(scores) / math.sqrt(len(scores))


@dataclass(frozen=True)
class Evaluation:
    """Scores of a learner on a frozen set of episodes.

    metric:       `accuracy` (share of right answers, 0 .. 1) or `mse` (squared units of labels).
    scores, losses: one per episode.
    after_steps:  (steps + 1) rows of one score per episode: before adaptation, after step 1, and so
                  on; empty without inner steps.
    episode_set:  hash of the episodes' tensors: equal hashes may be compared pair by pair.
    adaptation_seconds: median time from support set to predictor, one task at a time.
    sizes: if they vary, `n_way`, `n_shot` or `n_support` (items of all classes together), and
        `n_query` of each episode, by name.
    confusion: number of queries by (right class, predicted class); empty if the source does not
        name the classes of its episodes.
    """

    metric: str
    scores: list[float]
    losses: list[float]
    after_steps: list[list[float]]
    episode_set: str
    adaptation_seconds: float
    sizes: dict[str, list[int]] = field(default_factory=dict)
    confusion: Counts = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Plain data: `<metric>`, `interval`, and `<metric>_after_<k>` for each inner step k."""
        mean, interval = mean_and_interval(self.scores)
        steps = {f"{self.metric}_after_{k}": fmean(row) for k, row in enumerate(self.after_steps)}
        return {
            "metric": self.metric,
            self.metric: mean,
            "interval": interval,
            "loss": fmean(self.losses),
            **steps,
            "episodes": len(self.scores),
            "episode_set": self.episode_set,
        }

    def better_than(self, best: float | None) -> bool:
        """Whether the mean score beats another one, or there is no other."""
        mean = fmean(self.scores)
        return best is None or (mean > best if self.metric == "accuracy" else mean < best)


def evaluate(
    learner: Learner | Fitting,
    source: EpisodeSource,
    split: Split,
    episodes: int,
    seed: int = 0,
    task: TaskShape | None = None,
    on_episode: Callable[[], None] = lambda: None,
    each_step: bool = True,
    workers: int = 1,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Adapt to each of the first `episodes` episodes of a split and score the queries.

    learner: or the rule that finds the one for each shape of episodes.
    seed: of the frozen episodes, not of a run.
    task: their shape, if it is not the one of training.
    on_episode: called after each episode of this rank, for progress bars.
    each_step: score the queries after each inner step too, which takes as many passes over them.
    workers: episodes at a time, on a core each. It is one on a GPU, and if a task leaves something
        behind that another one would find, such as moved buffers or random numbers drawn.
    ranks: the processes that share episodes and workers, and all of which call this. Each takes a
        contiguous part of them, as many as are drawn together or a multiple of it.
    Raises RunError at the first episode whose loss or score is not finite: no mean over it means
    anything.
    """
    fitted = as_fitting(learner)
    fitted.learner.eval()
    judging = _Judging(fitted, source, split, seed, task or source.task, each_step, workers)
    with torch.no_grad():
        if not ranks.alone and ranks.told(lambda: judging.moves_something(episodes)):
            ranks = ALONE
        judging.processes = ranks.count
        known = ranks.told(lambda: source.known_set(split, episodes, seed, judging.task))
        blocks = _blocks(episodes)
        own = ranks.part(len(blocks))
        # Nobody judges meanwhile: it would take the cores of what is timed.
        times = ranks.told(lambda: judging.adaptation_times(min(episodes, TIMED_EPISODES)))
        told = ranks.gather(
            lambda: judging.judge(blocks[own.start : own.stop], known is None, on_episode)
        )
    return _put_together(told, judging.task, known, times)


def share_of_episodes(ranks: Ranks, episodes: int) -> int:
    """How many of as many frozen episodes this rank judges."""
    blocks = _blocks(episodes)
    own = ranks.part(len(blocks))
    return sum(map(len, blocks[own.start : own.stop]))


def _blocks(episodes: int) -> list[range]:
    """The episodes that are drawn together; the hash of a set depends on it."""
    starts = range(0, episodes, DRAWN_TOGETHER)
    return [range(start, min(start + DRAWN_TOGETHER, episodes)) for start in starts]


class _Told(TypedDict):
    """What a rank tells of the episodes that it has judged."""

    rows: list[list[float]]
    losses: list[float]
    sizes: dict[str, list[int]]
    prints: list[str]
    confusion: list[tuple[str, str, int]]


def _put_together(
    told: Sequence[_Told], task: TaskShape, known: str | None, times: Sequence[float]
) -> Evaluation:
    rows = [row for each in told for row in each["rows"]]
    digest = hashlib.blake2b(digest_size=16)
    for each in told:
        for print_ in each["prints"]:
            digest.update(bytes.fromhex(print_))
    confusion: Counter[tuple[str, str]] = Counter()
    for each in told:
        confusion.update({(right, taken): n for right, taken, n in each["confusion"]})
    after_steps = [list(column) for column in zip(*rows, strict=True)]
    return Evaluation(
        task.metric,
        scores=after_steps[-1],
        losses=[loss for each in told for loss in each["losses"]],
        after_steps=after_steps if len(after_steps) > 1 else [],
        episode_set=known or digest.hexdigest(),
        adaptation_seconds=median(times),
        sizes={name: [n for e in told for n in e["sizes"][name]] for name in told[0]["sizes"]},
        confusion=dict(sorted(confusion.items())),
    )


@dataclass
class _Judging:
    """How frozen episodes of a split are judged."""

    fitted: Fitting
    source: EpisodeSource
    split: Split
    seed: int
    task: TaskShape
    each_step: bool
    workers: int
    processes: int = 1

    def judge(self, blocks: Sequence[range], hashed: bool, on_episode: Callable[[], None]) -> _Told:
        """hashed: tell the digests of the episodes, too."""
        sizes = {name: list[int]() for name in _SIZES if _differs(self.task.varies, name)}
        told = _Told(rows=[], losses=[], sizes=sizes, prints=[], confusion=[])
        way: tuple[bool, Workers] | None = None
        confusion = Confusion()
        for block in blocks:
            groups = self._drawn(block)
            if hashed:
                told["prints"] += [self.source.fingerprint(g.episodes).hex() for g in groups]
            if way is None:
                shared = _shared(self.fitted, groups[0], self.workers, self.processes)
                way = self._together(groups[0]), shared
            predicted = self._judge_block(groups, told, *way, on_episode)
            names = self.source.classes_of(self.split, block, self.seed, self.task)
            if names is not None:
                right = in_order(groups, (group.episodes.query.y for group in groups))
                confusion.add(names, right, predicted)
        told["confusion"] = [(*pair, n) for pair, n in confusion.counts().items()]
        return told

    def _judge_block(
        self,
        groups: Sequence[Group],
        told: _Told,
        together: bool,
        shared: Workers,
        on_episode: Callable[[], None],
    ) -> list[Tensor]:
        """The labels that were predicted in each episode; all else is added to `told`."""
        shapes, adapted = zip(*unbatch(groups), strict=True)
        judged: Iterable[Judged]
        predicted = []
        if together:
            judged = in_order(groups, (self._judged_at_once(group) for group in groups))
        else:
            judged = shared.map(self._judge_one, adapted, map(self.fitted, shapes))
        for shape, episode, (row, value, labels) in zip(shapes, adapted, judged, strict=True):
            _require_finite(f"evaluation, {self.split} episode {int(episode.id)}", value, row)
            for name, column in told["sizes"].items():
                column.append(_SIZES[name](shape, episode))
            told["rows"].append(row)
            told["losses"].append(value)
            predicted.append(labels)
            on_episode()
        return predicted

    def _together(self, group: Group) -> bool:
        learner = self.fitted(group.task)
        if not judged_together(learner) or _leave_traces(learner, group.episodes.unbatch()):
            return False
        try:
            self._judged_at_once(group)
        except RuntimeError:  # of vmap, for an adapter that is written for one task at a time
            return False
        return True

    def _judged_at_once(self, group: Group) -> list[Judged]:
        learner, task = self.fitted(group.task), group.task or self.task
        return judge_together(learner, group.episodes, task, self.each_step)

    def _judge_one(self, learner: Learner, episode: Episode) -> Judged:
        # An adapter that draws random numbers draws the same ones for this episode every time,
        # whichever episodes were judged before.
        seed_torch("evaluation", self.seed, self.split, int(episode.id))
        predictors = learner.trajectory(episode) if self.each_step else [learner.adapt(episode)]
        predictions = [predict(episode.query.x) for predict in predictors]
        scores = [float(self.task.score(p, episode.query.y)) for p in predictions]
        loss = float(self.task.loss(predictions[-1], episode.query.y))
        return Judged(scores, loss, predictions[-1].argmax(-1))

    def adaptation_times(self, episodes: int) -> list[float]:
        """Seconds of the first ones, one at a time."""
        tasks = unbatch(self._drawn(range(episodes)))
        return [_adaptation_time(self.fitted(shape), episode) for shape, episode in tasks]

    def moves_something(self, episodes: int) -> bool:
        """Whether an episode finds what the one before it left, so that one process judges all."""
        group = self._drawn(_blocks(episodes)[0])[0]
        try:
            return _traces(self.fitted(group.task), group.episodes.unbatch()).moved is not None
        except NotCopiableError:
            return True

    def _drawn(self, block: range) -> Sequence[Group]:
        return self.source.groups(self.split, block, self.seed, self.task)


_SIZES: dict[str, Callable[[TaskShape, Episode], int]] = {
    "n_way": lambda shape, episode: shape.n_way,
    "n_shot": lambda shape, episode: shape.n_shot,
    "n_support": lambda shape, episode: len(episode.support.x),
    "n_query": lambda shape, episode: shape.n_query,
}


def _differs(varies: Varies, size: str) -> bool:
    if size in ("n_shot", "n_support"):
        return bool(varies.n_shot) and varies.class_shots == (size == "n_support")
    return bool(getattr(varies, size))


def _require_finite(where: str, loss: float, scores: Sequence[float]) -> None:
    found = {"loss": loss} | {f"score after {k} inner steps": s for k, s in enumerate(scores)}
    bad = next((name for name, value in found.items() if not math.isfinite(value)), None)
    if bad:
        raise RunError(
            f"{where}: the {bad} is {found[bad]}. Finite items and weights; smaller steps of the "
            "outer or the inner loop may help"
        )


def _shared(fitted: Fitting, group: Group, workers: int, processes: int) -> Workers:
    """As many workers as can share the tasks without changing the result."""
    learner, episodes = fitted(group.task), group.episodes.unbatch()
    on_gpu = episodes[0].support.x.is_cuda
    alone = workers == 1 or on_gpu or not learner.adapter.threadable
    one_by_one = alone or _leave_traces(learner, episodes)
    return Workers(fitted.learner, 1 if one_by_one else workers, processes)


def _leave_traces(learner: Learner, episodes: Sequence[Episode]) -> bool:
    try:
        return _traces(learner, episodes) != Traces()
    except NotCopiableError:
        return True


def _traces(learner: Learner, episodes: Sequence[Episode]) -> Traces:
    def predict(learner: Learner, episode: Episode) -> None:
        for predictor in learner.trajectory(episode):
            predictor(episode.query.x)

    return find_traces(learner, [episodes[0], episodes[-1]], predict)


def predict_episodes(
    learner: Learner | Fitting,
    source: EpisodeSource,
    split: Split,
    indices: Sequence[int],
    seed: int = 0,
    task: TaskShape | None = None,
) -> Iterator[tuple[Episode, Tensor]]:
    """Single frozen episodes with the predictions that `evaluate` scores.

    A prediction is (n_queries, output_dim), one row for each query.
    """
    fitted = as_fitting(learner)
    fitted.learner.eval()
    for shape, episode in unbatch(source.groups(split, indices, seed, task or source.task)):
        seed_torch("evaluation", seed, split, int(episode.id))
        with torch.no_grad():
            prediction = fitted(shape).trajectory(episode)[-1](episode.query.x)
        yield episode, prediction


def _adaptation_time(learner: Learner, episode: Episode) -> float:
    _wait(episode)
    started = time.perf_counter()
    learner.adapt(episode)
    _wait(episode)
    return time.perf_counter() - started


def _wait(episode: Episode) -> None:
    if episode.id.is_cuda or episode.support.x.is_cuda:
        torch.cuda.synchronize()

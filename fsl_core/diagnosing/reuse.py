"""Feature re-use: how far adaptation moves the features of each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from fsl_core.data.groups import unbatch
from fsl_core.data.seeding import seed_torch
from fsl_core.data.source import DRAWN_TOGETHER, EpisodeSource, Split
from fsl_core.data.work import reported
from fsl_core.diagnosing.layers import Maps, layers_of, recorded
from fsl_core.diagnosing.similarity import MEASURES, Distance, distances
from fsl_core.engine.evaluation import mean_and_interval
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.episode import Episode, TaskShape
from fsl_core.errors import OptionError
from fsl_core.inner import InnerProblem
from fsl_core.learner import Learner
from fsl_core.nn.norms import support_reference

BEFORE, CENTROID, HEAD, ALL = "not adapted", "nearest class mean", "head alone", "as adapted"


@dataclass(frozen=True)
class FeatureReuse:
    """How far adaptation moves the features of the query items, and the score beside it.

    metric:    `accuracy` or `mse`.    items: rows that a layer's features are compared over.
    distances: one per episode, by layer and measure; see `similarity.distances`.
    scores:    one per episode, by what was adapted. `not adapted`, `nearest class mean` (without
               adaptation, on features of the support set), `head alone`, `as adapted`.
    reasons:   why a measure of a layer, or a score, has no value.
    notes:     what to know of values.
    shifts:    mean squared difference of the outputs before and after adaptation, per episode.
    """

    metric: str
    items: dict[str, int]
    distances: dict[str, dict[str, list[float]]]
    scores: dict[str, list[float]]
    shifts: list[float]
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer and measure: mean, sd and 95 % interval over episodes, or null."""
        return [
            {
                "layer": layer,
                "measure": measure,
                **_over_episodes(of_layer.get(measure, [])),
                "items": self.items.get(layer),
                "reason": self.reasons.get(layer, {}).get(measure, ""),
                "note": self.notes.get(layer, {}).get(measure, ""),
            }
            for layer, of_layer in self.distances.items()
            for measure in MEASURES
        ]

    def summary(self) -> dict[str, Any]:
        """Plain data: the rows, the score by what was adapted, and the shift of outputs."""
        scores = {name: _over_episodes(found) for name, found in self.scores.items()}
        for name, reason in self.reasons.get("scores", {}).items():
            scores[name] = {**_over_episodes([]), "reason": reason}
        return {
            "metric": self.metric,
            "layers": self.rows(),
            "scores": scores,
            "output_shift": _over_episodes(self.shifts),
        }


def _over_episodes(values: Sequence[float]) -> dict[str, Any]:
    """null without values; without an interval for one."""
    if not values:
        return {"mean": None, "sd": None, "interval": None, "episodes": 0}
    if len(values) == 1:
        return {"mean": values[0], "sd": None, "interval": None, "episodes": 1}
    mean, interval = mean_and_interval(values)
    sd = float(torch.tensor(values, dtype=torch.float64).std())
    return {"mean": mean, "sd": sd, "interval": interval, "episodes": len(values)}


def measure_reuse(
    learner: Learner | Fitting,
    source: EpisodeSource,
    split: Split,
    episodes: int,
    seed: int = 0,
    task: TaskShape | None = None,
    *,
    layers: Sequence[str] = (),
    maps: Maps = "whole",
) -> FeatureReuse:
    """Adapt to each of the first frozen episodes of a split; compare features before and after.

    The first five arguments and `task` are as for `evaluate`; `layers` and `maps` as for
    `layers_of` and `recorded`. Raises OptionError for a learner that has no layers, or of which
    nothing is known before adaptation.
    """
    if maps not in get_args(Maps):
        raise OptionError(f"maps: {maps!r}. One of {', '.join(get_args(Maps))}")
    fitted, task = as_fitting(learner), task or source.task
    fitted.learner.eval()
    found = _Found()
    with torch.no_grad(), reported("comparing features", episodes) as advance:
        for shape, episode in frozen_episodes(source, split, episodes, seed, task):
            seed_torch("evaluation", seed, split, int(episode.id))
            judged = _Judged(fitted(shape), episode, shape or task)
            found.add(judged.compared(layers, maps), judged.scores(), judged.shift())
            advance(1)
    return found.told(task.metric)


def frozen_episodes(
    source: EpisodeSource, split: Split, episodes: int, seed: int, task: TaskShape
) -> Iterator[tuple[TaskShape | None, Episode]]:
    """The episodes that `evaluate` judges on, one after the other, with their shapes."""
    for start in range(0, episodes, DRAWN_TOGETHER):
        indices = range(start, min(start + DRAWN_TOGETHER, episodes))
        yield from unbatch(source.groups(split, indices, seed, task))


class _Score(NamedTuple):
    value: float | None
    reason: str = ""


class _Judged:
    """One episode before and after adaptation."""

    def __init__(self, learner: Learner, episode: Episode, task: TaskShape):
        self.learner, self.episode, self.task = learner, episode, task
        predictors = learner.trajectory(episode)
        if len(predictors) < 2:
            raise OptionError(
                f"adapter {learner.adapter.name!r}: one predictor, so there is none before "
                "adaptation. An adapter that takes inner steps, in evaluation too"
            )
        self.ends = predictors[0], predictors[-1]
        self.outputs: list[Tensor] = []

    def compared(self, patterns: Sequence[str], maps: Maps) -> dict[str, _Compared]:
        layers = layers_of(self.learner.backbone, patterns)
        if not layers:
            raise OptionError(
                f"backbone: a {type(self.learner.backbone).__name__} has no layers with weights, "
                "as with features that were computed once. A backbone that is trained, or `layers`"
            )
        features = []
        for predict in self.ends:
            with recorded(layers, len(self.episode.query.x), maps) as found:
                self.outputs.append(predict(self.episode.query.x))
            features.append(found)
        return {name: _compare(name, *features) for name in layers}

    def scores(self) -> dict[str, _Score]:
        before, after = map(self._score, self.outputs)
        return {BEFORE: before, CENTROID: self._centroid(), HEAD: self._head(), ALL: after}

    def shift(self) -> float:
        return float((self.outputs[0] - self.outputs[1]).square().mean())

    def _score(self, prediction: Tensor) -> _Score:
        return _Score(float(self.task.score(prediction, self.episode.query.y)))

    def _centroid(self) -> _Score:
        if self.task.kind != "classification":
            return _Score(None, "a regression has no classes")
        (support_x, labels), (query_x, _), _ = self.episode
        with support_reference(support_x, query_x):
            support, query = map(self.learner.backbone, (support_x, query_x))
        means = [support[labels == label].mean(0) for label in range(self.task.n_way)]
        return self._score(-torch.cdist(query, torch.stack(means)))

    def _head(self) -> _Score:
        try:
            predict = self.learner.trajectory_of(self.episode, _of_head)[-1]
        except OptionError as error:
            return _Score(None, str(error))
        return self._score(predict(self.episode.query.x))


def _of_head(problem: InnerProblem) -> InnerProblem:
    """The same steps, which leave the backbone alone."""
    names = [name for name in problem.start if not name.startswith("backbone.")]
    if not names:
        raise OptionError("its inner steps move the backbone alone. Steps that move a head too")
    return problem.moving([names] * problem.steps)


class _Compared(NamedTuple):
    rows: int | None
    distances: Mapping[str, Distance]


def _compare(layer: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> _Compared:
    if layer not in before or layer not in after:
        reason = "the predictor does not call it"
        return _Compared(None, dict.fromkeys(MEASURES, Distance(None, reason)))
    return _Compared(len(before[layer]), distances(before[layer], after[layer]))


class _Found:
    """What the episodes so far have given."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.distances: dict[str, dict[str, list[float]]] = {}
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.shifts: list[float] = []
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)
        self.notes: dict[str, dict[str, str]] = defaultdict(dict)

    def add(
        self, compared: Mapping[str, _Compared], scores: Mapping[str, _Score], shift: float
    ) -> None:
        for layer, (rows, found) in compared.items():
            own = self.distances.setdefault(layer, {})
            if rows is not None:
                self.items[layer] = rows
            for measure, distance in found.items():
                if distance.value is None:
                    self.reasons[layer].setdefault(measure, distance.reason)
                else:
                    own.setdefault(measure, []).append(distance.value)
                if distance.note:
                    self.notes[layer].setdefault(measure, distance.note)
        for name, score in scores.items():
            if score.value is None:
                self.reasons["scores"].setdefault(name, score.reason)
            else:
                self.scores[name].append(score.value)
        self.shifts.append(shift)

    def told(self, metric: str) -> FeatureReuse:
        return FeatureReuse(
            metric,
            self.items,
            self.distances,
            dict(self.scores),
            self.shifts,
            dict(self.reasons),
            dict(self.notes),
        )

"""What a sweep found: a table over seeds, paired differences from the baseline, mean ranks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fsl_core.data.work import each
from fsl_core.engine.evaluation import mean_and_interval
from fsl_core.errors import RunError
from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.reporting.scores import (
    THESE_RUNS,
    Judging,
    RunScores,
    judged_unlike,
    read_scores,
)
from fsl_core.reporting.statistics import (
    MIN_BLOCKS,
    MeanRanks,
    PairedDifference,
    TwoLevel,
    holm,
    mean_ranks,
    over_seeds,
    paired_difference,
    ranks,
    tied_with_best,
    two_level,
)
from fsl_core.runs.files import UNROLLED, write_atomically
from fsl_core.sweeping.jobs import Job
from fsl_core.sweeping.plan import Plan, Row
from fsl_core.text import in_words

TIMES = ("adaptation_seconds", "training_seconds")
JUDGING = ("norm", "transductive", "n_query")
ESTIMATE = "outer.hypergradient"
MEASURED = (
    "interval",
    "seed_sd",
    "interval_seeds",
    "seeds",
    "rank",
    "best",
    "hypergradient",
    *JUDGING,
    *TIMES,
    "episode_set",
)
FAILURES = ("failed", "error")
OUTCOMES = ("wins", "ties", "losses")
OVER_SEEDS = ("interval_seeds", "p_seeds_holm")
DIFFERENCE = (
    *("minus", "difference", "interval", "p", "p_holm", *OUTCOMES, "episodes", "seeds"),
    *OVER_SEEDS,
)


@dataclass(frozen=True)
class RowResult:
    """A row with its finished runs, by seed.

    failed: (run, reason) of those that are not.
    rank: of the mean score within its setting, 1 for the best; None if no run has finished.
    best: whether it is the best of its setting, or not worse beyond the paired interval.
    """

    row: Row
    runs: Mapping[str, RunScores]
    failed: tuple[tuple[str, str], ...]
    rank: float | None = None
    best: bool = False

    @property
    def by_seed(self) -> dict[str, np.ndarray]:
        """(n_episodes,) scores of each run."""
        return {seed: run.scores for seed, run in self.runs.items()}

    @property
    def over_seeds(self) -> TwoLevel | None:
        """Its mean with an interval over seeds and episodes; None with fewer than two seeds."""
        return two_level(np.stack(list(self.by_seed.values()))) if len(self.runs) > 1 else None

    def scores(self, seeds: Sequence[str] | None = None, label: str | None = None) -> np.ndarray:
        """(n_episodes,), each episode's mean over seeds; label: a source of `evaluate.on`."""
        return np.mean([self.runs[seed].on(label).scores for seed in seeds or self.runs], axis=0)

    @property
    def score(self) -> float:
        return float(self.scores().mean())

    @property
    def hypergradient(self) -> str:
        """How its meta-gradient was estimated; "" if no run has finished."""
        return next((run.hypergradient for run in self.runs.values()), "")

    @property
    def judging(self) -> Judging | None:
        """How its runs were judged; None if none has finished."""
        return next((run.judging for run in self.runs.values()), None)


@dataclass(frozen=True)
class Difference:
    """A row compared with its baseline.

    paired: over episodes, each averaged over the seeds.
    p_holm: adjusted for all differences of the sweep.
    both: over seeds and episodes together; None with fewer than two seeds.
    p_seeds_holm: the p-value of `both`, adjusted likewise.
    """

    row: Row
    baseline: Row
    seeds: tuple[str, ...]
    paired: PairedDifference
    p_holm: float
    both: TwoLevel | None = None
    p_seeds_holm: float | None = None


@dataclass(frozen=True)
class SweepResult:
    plan: Plan
    metric: str
    rows: tuple[RowResult, ...]
    differences: tuple[Difference, ...]

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "mse"

    def of_setting(self, setting: int) -> list[RowResult]:
        return [result for result in self.rows if result.row.setting == setting]

    def judgings(self) -> dict[str, Judging]:
        """How each row with a finished run was judged, by its title."""
        return {
            self.title(item): judging for item in self.rows if (judging := item.judging) is not None
        }

    def title(self, item: RowResult) -> str:
        setting = self.plan.setting_title(item.row.setting)
        return ", ".join(filter(None, (setting, self.plan.row_title(item.row))))

    def ranking(self) -> tuple[list[str], MeanRanks]:
        """Titles and mean ranks of the rows. ValueError says why Friedman's test is not valid.

        A block is a seed on a data set. Its score of a row is the mean over the settings of that
        data set: several numbers of shots, for example, make no further blocks.
        """
        if incomplete := [item for item in self.rows if item.failed]:
            told = f"{len(incomplete)} of {len(self.rows)} rows"
            raise ValueError(f"{told} have a run that did not finish")
        titles = list(dict.fromkeys(self.plan.row_title(item.row) for item in self.rows))
        sets = dict.fromkeys(item.row.data for item in self.rows)
        seeds = dict.fromkeys(seed for item in self.rows for seed in item.runs)
        blocks = [self._block(data, seed) for data in sets for seed in seeds]
        if any(len(block) != len(titles) for block in blocks):
            raise ValueError("not every row was run with every seed on every data set")
        if len(blocks) < MIN_BLOCKS:
            made_of = f"{_counted(seeds, 'seed')} on {_counted(sets, 'data set')}"
            told = f"{_counted(blocks, 'block')} ({made_of})"
            raise ValueError(f"{told}, and Friedman's test needs {MIN_BLOCKS}")
        scores = [[block[title] for title in titles] for block in blocks]
        return titles, mean_ranks(np.array(scores), self.higher_is_better)

    def _block(self, data: str, seed: str) -> dict[str, float]:
        """The score of each row that has this seed in every setting of this data set."""
        items: dict[str, list[RowResult]] = {}
        for item in self.rows:
            if item.row.data == data:
                items.setdefault(self.plan.row_title(item.row), []).append(item)
        settings = max(map(len, items.values()))
        scores = {}
        for title, found in items.items():
            runs = [item.runs[seed] for item in found if seed in item.runs]
            if len(runs) == settings:
                scores[title] = fmean(float(run.scores.mean()) for run in runs)
        return scores

    @property
    def further(self) -> list[str]:
        """The labels of `evaluate.on` that some row was judged on, too."""
        runs = (run for item in self.rows for run in item.runs.values())
        return list(dict.fromkeys(label for run in runs for label in run.further))

    def told_once(self) -> list[str]:
        """Lines to read before the table: what holds for all rows, and what keeps some apart."""
        judgings = list(self.judgings().values())
        norm = _only({judging.norm_in_full for judging in judgings})
        queries = _only({judging.queries_in_full for judging in judgings})
        shared = [text for text in (norm, queries) if text]
        method = [f"hypergradient {name}"] if (name := _only(self._estimates())) else []
        refused = [f"not run: {title}: {reason}" for title, reason in self.plan.refused]
        more = "; sd over seeds shows what other trainings give"
        seeds = max((len(item.runs) for item in self.rows), default=0)
        interval = f"one seed: {THESE_RUNS}" if seeds == 1 else f"{THESE_RUNS}{more}"
        in_common = ["; ".join(shared)] if shared else []
        return [*method, *in_common, interval, *judged_unlike(self.judgings()), *refused]

    def telling_columns(self) -> list[str]:
        """Columns about method and judging in which rows differ, and that no axis shows."""
        judgings = list(self.judgings().values())
        seen: dict[str, set[Any]] = {
            "hypergradient": set() if ESTIMATE in self.plan.varying else self._estimates(),
            "norm": {judging.norm_in_full for judging in judgings},
            "n_query": {judging.n_query for judging in judgings},
        }
        return [name for name, found in seen.items() if len(found) > 1]

    def _estimates(self) -> set[str]:
        """The hypergradients of the rows; none if all are unrolled."""
        found = {item.hypergradient for item in self.rows if item.runs}
        return set() if found == {UNROLLED} else found

    def ranks_told(self) -> str:
        """The mean ranks in one line, or why there are none."""
        try:
            titles, found = self.ranking()
        except ValueError as error:
            return f"mean ranks left out: {error}"
        best_first = sorted(zip(found.ranks, titles, strict=True))
        each = (f"{title} {rank:.2f}" for rank, title in best_first)
        return (
            f"mean ranks over {found.blocks} blocks (Friedman: p = {found.p:.2g}; critical "
            f"difference {found.critical_difference:.2f}): {', '.join(each)}"
        )


def _plain(value: Any) -> Any:
    """A range in words, which a table can hold."""
    return in_words(value) if isinstance(value, tuple) else value


def _only(values: set[str]) -> str:
    return next(iter(values)) if len(values) == 1 else ""


def _counted(things: Sequence[Any] | Mapping[Any, Any], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def collect(plan: Plan, jobs: Sequence[Job]) -> SweepResult:
    """Read what the finished runs of a sweep have scored.

    Raises RunError if runs of one row were not judged on the same episodes.
    """
    by_cell = {job.cell.digest: job for job in jobs}
    results = [
        _row_result(row, [by_cell[cell.digest] for cell in row.cells])
        for row in each(plan.rows, "reading results")
    ]
    _hold_episodes(results)
    metric = next((run.metric for result in results for run in result.runs.values()), "accuracy")
    better = metric != "mse"
    ranked = _ranked(results, better)
    return SweepResult(plan, metric, tuple(ranked), tuple(_differences(results, better)))


def _ranked(results: Sequence[RowResult], higher_is_better: bool) -> list[RowResult]:
    """The rows with their ranks, each among those of its setting."""
    settings: dict[int, list[int]] = {}
    for i, result in enumerate(results):
        if result.runs:
            settings.setdefault(result.row.setting, []).append(i)
    ranked = list(results)
    for members in settings.values():
        # Means of equal scores may differ in their last bits, and equal rows share a rank.
        scores = np.array([round(results[i].score, 12) for i in members])
        tied = tied_with_best([results[i].by_seed for i in members], higher_is_better)
        order = ranks(scores, higher_is_better)
        for i, rank, best in zip(members, order, tied, strict=True):
            ranked[i] = replace(results[i], rank=float(rank), best=best)
    return ranked


def _row_result(row: Row, jobs: list[Job]) -> RowResult:
    runs: dict[str, RunScores] = {}
    failed: list[tuple[str, str]] = []
    for job in jobs:
        seed = str(job.cell.recipe.sections.seed)
        try:
            if job.state != "finished":
                raise RunError(job.error or "not finished")
            runs[seed] = read_scores(job.directory)
        except RunError as error:  # one that is damaged or deleted leaves the others
            job.state, job.error = "failed", str(error)
            failed.append((job.cell.title, job.error))
    return RowResult(row, runs, tuple(failed))


def _hold_episodes(results: Sequence[RowResult]) -> None:
    first: dict[tuple[int, str | None], RunScores] = {}
    for result in results:
        for run in result.runs.values():
            for judged in (run, *run.further.values()):
                other = first.setdefault((result.row.setting, judged.label), judged)
                own, known = judged.result["episode_set"], other.result["episode_set"]
                if own != known:
                    of = "episode set" if judged.label is None else f"episode set of {judged.label}"
                    raise RunError(
                        f"{run.directory}: {of} {own}, but {other.directory} has {known}: the "
                        "data has changed. Delete one of them and run the sweep again"
                    )


def _differences(results: Sequence[RowResult], higher_is_better: bool) -> list[Difference]:
    found = []
    for result in results:
        other = results[result.row.baseline]
        seeds = tuple(seed for seed in result.runs if seed in other.runs)
        if result is not other and seeds:
            scores = other.scores(seeds), result.scores(seeds)
            paired = paired_difference(*scores, higher_is_better)
            both = over_seeds(other.by_seed, result.by_seed)
            found.append(Difference(result.row, other.row, seeds, paired, paired.p, both))
    adjusted = iter(holm([difference.paired.p for difference in found]))
    of_seeds = iter(holm([difference.both.p for difference in found if difference.both]))
    return [
        replace(one, p_holm=next(adjusted), p_seeds_holm=next(of_seeds) if one.both else None)
        for one in found
    ]


def column(axis: str) -> str:
    """The column of an axis; one with the name of another column is told apart."""
    taken = ("accuracy", "mse", *MEASURED, *FAILURES, *DIFFERENCE)
    return f"matrix.{axis}" if axis in taken else axis


def _labels(row: Row) -> dict[str, str]:
    return {column(axis): label for axis, label in row.labels.items()}


def table(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping for each row: labels, score, how it was judged, rank, times, failures."""
    return [
        {
            **_labels(item.row),
            **_measured(item, result.metric),
            **_on_further(item, result),
            **_failures(item),
        }
        for item in result.rows
    ]


def further_columns(result: SweepResult) -> list[tuple[str, str]]:
    """(score, interval) of each further source of `evaluate.on`."""
    return [(f"{result.metric} on {label}", f"interval on {label}") for label in result.further]


def _on_further(item: RowResult, result: SweepResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, names in zip(result.further, further_columns(result), strict=True):
        found.update(dict.fromkeys(names, ""))
        if item.runs and all(label in run.further for run in item.runs.values()):
            mean, interval = mean_and_interval(item.scores(label=label).tolist())
            found.update(zip(names, (round(mean, 6), round(interval, 6)), strict=True))
    return found


def _measured(item: RowResult, metric: str) -> dict[str, Any]:
    if not item.runs:
        return dict.fromkeys([metric, *MEASURED], "")
    mean, interval = mean_and_interval(item.scores().tolist())
    each = [float(run.scores.mean()) for run in item.runs.values()]
    both = item.over_seeds
    return {
        metric: round(mean, 6),
        "interval": round(interval, 6),
        "seed_sd": round(float(np.std(each, ddof=1)), 6) if len(each) > 1 else "",
        "interval_seeds": round(both.interval, 6) if both else "",
        "seeds": " ".join(item.runs),
        "rank": item.rank,
        "best": item.best,
        "hypergradient": item.hypergradient,
        **{key: _plain(getattr(item.judging, key)) for key in JUDGING},
        **{key: round(fmean(run.result[key] for run in item.runs.values()), 6) for key in TIMES},
        "episode_set": next(iter(item.runs.values())).result["episode_set"],
    }


def _failures(item: RowResult) -> dict[str, Any]:
    return {"failed": len(item.failed), "error": item.failed[0][1] if item.failed else ""}


def difference_table(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping for each difference; `p_holm` is adjusted for all of them."""
    return [
        {
            **_labels(difference.row),
            "minus": result.plan.row_title(difference.baseline),
            "difference": round(difference.paired.difference, 6),
            "interval": round(difference.paired.interval, 6),
            "p": float(f"{difference.paired.p:.6g}"),
            "p_holm": float(f"{difference.p_holm:.6g}"),
            "wins": difference.paired.wins,
            "ties": difference.paired.ties,
            "losses": difference.paired.losses,
            "episodes": difference.paired.episodes,
            "seeds": " ".join(difference.seeds),
            **_told_over_seeds(difference),
        }
        for difference in result.differences
    ]


def _told_over_seeds(difference: Difference) -> dict[str, Any]:
    if difference.both is None:
        return dict.fromkeys(OVER_SEEDS, "")
    found = (round(difference.both.interval, 6), float(f"{difference.p_seeds_holm:.6g}"))
    return dict(zip(OVER_SEEDS, found, strict=True))


def write_tables(result: SweepResult, directory: Path, raw: bool = False) -> None:
    """Write sweep.csv and differences.csv.

    raw: names as they are, even if a spreadsheet would compute them.
    """
    labels = [column(axis) for axis in result.plan.rows[0].labels]
    further = chain.from_iterable(further_columns(result))
    columns = [*labels, result.metric, *MEASURED, *further, *FAILURES]
    write_atomically(directory / "sweep.csv", _csv(columns, table(result), raw))
    columns = [*labels, *DIFFERENCE]
    write_atomically(directory / "differences.csv", _csv(columns, difference_table(result), raw))


def _csv(columns: list[str], rows: list[dict[str, Any]], raw: bool) -> str:
    text = io.StringIO()
    writer = CsvWriter(text, raw)
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    return text.getvalue()

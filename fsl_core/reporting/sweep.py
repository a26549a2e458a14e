"""The figures of a sweep: one table over seeds, paired differences against the baseline, mean ranks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fsl_core.errors import RunError
from fsl_core.reporting.scores import RunScores, read_scores
from fsl_core.reporting.statistics import (
    MeanRanks,
    PairedDifference,
    holm,
    mean_ranks,
    paired_difference,
    ranks,
)
from fsl_core.sweeping.plan import Plan, Row
from fsl_core.sweeping.schedule import Job
from fsl_core.training.evaluation import mean_and_interval
from fsl_core.training.files import write_atomically

TIMES = ("adaptation_seconds", "training_seconds")


@dataclass(frozen=True)
class RowResult:
    """A row with its finished runs, by seed.

    failed: (run, reason) of those that are not.
    rank:   of the mean score within its setting, 1 for the best; None where no run has finished.
    """

    row: Row
    runs: Mapping[str, RunScores]
    failed: tuple[tuple[str, str], ...]
    rank: float | None = None

    def scores(self, seeds: Sequence[str] | None = None) -> np.ndarray:
        """(n_episodes,), each episode's mean over seeds."""
        return np.mean([self.runs[seed].scores for seed in seeds or self.runs], axis=0)

    @property
    def score(self) -> float:
        return float(self.scores().mean())


@dataclass(frozen=True)
class Difference:
    """p_holm: adjusted for all differences of the sweep."""

    row: Row
    baseline: Row
    seeds: tuple[str, ...]
    paired: PairedDifference
    p_holm: float


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

    def ranking(self, setting: int) -> tuple[list[RowResult], MeanRanks]:
        """Mean ranks over the test episodes of a setting. ValueError says why where Friedman's test is not valid."""
        rows = self.of_setting(setting)
        if incomplete := [result for result in rows if result.failed]:
            raise ValueError(
                f"{len(incomplete)} of {len(rows)} rows have a run that did not finish"
            )
        return rows, mean_ranks(
            np.stack([result.scores() for result in rows], axis=1), self.higher_is_better
        )


def collect(plan: Plan, jobs: Sequence[Job]) -> SweepResult:
    """Read what the finished runs of a sweep have scored. RunError where runs of one row were not judged on the same episodes."""
    by_cell = {job.cell.digest: job for job in jobs}
    results = [_row_result(row, [by_cell[cell.digest] for cell in row.cells]) for row in plan.rows]
    _hold_episodes(results)
    metric = next((run.metric for result in results for run in result.runs.values()), "accuracy")
    ranked: list[RowResult] = list(results)
    for setting in {row.setting for row in plan.rows}:
        members = [
            i for i, result in enumerate(results) if result.row.setting == setting and result.runs
        ]
        found = (
            ranks(np.array([round(results[i].score, 12) for i in members]), metric != "mse")
            if members
            else []
        )
        for i, rank in zip(members, found, strict=True):
            ranked[i] = RowResult(results[i].row, results[i].runs, results[i].failed, float(rank))
    return SweepResult(plan, metric, tuple(ranked), tuple(_differences(results, metric != "mse")))


def _row_result(row: Row, jobs: list[Job]) -> RowResult:
    runs, failed = {}, []
    for job in jobs:
        seed = str(job.cell.recipe.sections.seed)
        if job.state == "finished":
            runs[seed] = read_scores(job.directory)
        else:
            failed.append((job.cell.title, job.error or "not finished"))
    return RowResult(row, runs, tuple(failed))


def _hold_episodes(results: Sequence[RowResult]) -> None:
    first: dict[int, RunScores] = {}
    for result in results:
        for run in result.runs.values():
            other = first.setdefault(result.row.setting, run)
            if run.result["episode_set"] != other.result["episode_set"]:
                raise RunError(
                    f"{run.directory}: episode set {run.result['episode_set']}, but {other.directory} has "
                    f"{other.result['episode_set']}: the data has changed. Delete one of them and run the sweep again"
                )


def _differences(results: Sequence[RowResult], higher_is_better: bool) -> list[Difference]:
    pairs = []
    for result in results:
        other = results[result.row.baseline]
        seeds = tuple(seed for seed in result.runs if seed in other.runs)
        if result is not other and seeds:
            pairs.append(
                (
                    result,
                    other,
                    seeds,
                    paired_difference(other.scores(seeds), result.scores(seeds), higher_is_better),
                )
            )
    adjusted = holm([paired.p for *_, paired in pairs])
    return [
        Difference(a.row, b.row, seeds, paired, p)
        for (a, b, seeds, paired), p in zip(pairs, adjusted, strict=True)
    ]


def table(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping for each row: its labels, the score over seeds, rank, times, and how many runs failed and why."""
    return [
        {**item.row.labels, **_measured(item, result.metric), **_failures(item)}
        for item in result.rows
    ]


def _measured(item: RowResult, metric: str) -> dict[str, Any]:
    if not item.runs:
        return dict.fromkeys(
            [metric, "interval", "seed_sd", "seeds", "rank", *TIMES, "episode_set"], ""
        )
    mean, interval = mean_and_interval(item.scores().tolist())
    each = [float(run.scores.mean()) for run in item.runs.values()]
    return {
        metric: round(mean, 6),
        "interval": round(interval, 6),
        "seed_sd": round(float(np.std(each, ddof=1)), 6) if len(each) > 1 else "",
        "seeds": " ".join(item.runs),
        "rank": item.rank,
        **{key: round(fmean(run.result[key] for run in item.runs.values()), 6) for key in TIMES},
        "episode_set": next(iter(item.runs.values())).result["episode_set"],
    }


def _failures(item: RowResult) -> dict[str, Any]:
    return {"failed": len(item.failed), "error": item.failed[0][1] if item.failed else ""}


def difference_table(result: SweepResult) -> list[dict[str, Any]]:
    """One mapping for each difference; `p_holm` is adjusted for all of them."""
    return [
        {
            **difference.row.labels,
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
        }
        for difference in result.differences
    ]


def write_tables(result: SweepResult, directory: Path) -> None:
    """Write sweep.csv and differences.csv."""
    labels = [*result.plan.rows[0].labels]
    columns = [
        *labels,
        result.metric,
        "interval",
        "seed_sd",
        "seeds",
        "rank",
        *TIMES,
        "episode_set",
        "failed",
        "error",
    ]
    write_atomically(directory / "sweep.csv", _csv(columns, table(result)))
    columns = [
        *labels,
        "minus",
        "difference",
        "interval",
        "p",
        "p_holm",
        "wins",
        "ties",
        "losses",
        "episodes",
        "seeds",
    ]
    write_atomically(directory / "differences.csv", _csv(columns, difference_table(result)))


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

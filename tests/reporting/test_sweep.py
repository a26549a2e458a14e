"""The figures of a sweep, computed again by other means from the files of its runs; its page in a browser."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fsl_core.config.matrix import read_matrix
from fsl_core.errors import RunError
from fsl_core.hooks.registry import Registry
from fsl_core.reporting.sweep import SweepResult, collect, write_tables
from fsl_core.reporting.sweep_report import write_sweep_report
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.schedule import make_jobs
from fsl_core.training.outer_loop import judge, train
from fsl_core.training.run import new_run

MATRIX = """\
matrix:
  adapter:
    - nearest-centroid
    - {name: nearest-centroid, temperature: 0.05}
    - {name: explodes, at_progress: 2}
  outer.weighting: [uniform, {name: uniform, reduction: sum}]
  seed: [0, 1]
  baseline: {adapter: explodes, outer.weighting: uniform reduction=sum}
"""
ROWS = 6


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    text = (
        toy_recipe.read_text()
        .replace("n_way: 3", "n_way: 3, spread: 1.5")
        .replace("episodes: 10}", "episodes: 40}")
    )
    toy_recipe.write_text(text + MATRIX)
    return toy_recipe


def swept(
    recipe: Path, registry: Registry, leave_out: int | None = None
) -> tuple[SweepResult, list]:
    """Every run of the recipe's matrix, in this process; one of them may have failed."""
    plan = plan_sweep(read_matrix(recipe, registry, ["outer.steps=3", "outer.validate_every=0"]))
    jobs = make_jobs(plan.cells, recipe.parent / "sweep" / "runs")
    for i, job in enumerate(jobs):
        if i == leave_out:
            job.state, job.error = "failed", "outer step 2: the loss is nan"
            continue
        with new_run(job.directory, job.cell.recipe, registry, torch.device("cpu"), []) as run:
            train(run)
            judge(run)
        job.state = "finished"
    return collect(plan, jobs), jobs


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def scores(jobs: list) -> np.ndarray:
    """(rows, seeds, episodes) straight from the tables of the runs."""
    each = [
        [float(row["accuracy"]) for row in read(job.directory / "episodes.csv")] for job in jobs
    ]
    return np.array(each).reshape(ROWS, 2, 40)


def test_the_tables_are_those_of_the_runs(recipe: Path, toy_registry: Registry, tmp_path: Path):
    result, jobs = swept(recipe, toy_registry)
    write_tables(result, tmp_path)
    table, over_seeds = read(tmp_path / "sweep.csv"), scores(jobs).mean(axis=1)
    assert [float(row["accuracy"]) for row in table] == pytest.approx(
        over_seeds.mean(axis=1), abs=1e-6
    )
    interval = 1.96 * over_seeds.std(axis=1, ddof=1) / 40**0.5
    assert [float(row["interval"]) for row in table] == pytest.approx(interval, abs=1e-6)
    assert [float(row["seed_sd"]) for row in table] == pytest.approx(
        scores(jobs).mean(axis=2).std(axis=1, ddof=1), abs=1e-6
    )
    expected = stats.rankdata(-over_seeds.mean(axis=1).round(12))
    assert [float(row["rank"]) for row in table] == expected.tolist()
    assert {(row["seeds"], row["failed"], row["error"]) for row in table} == {("0 1", "0", "")}
    assert all(
        float(row["training_seconds"]) > 0 and float(row["adaptation_seconds"]) > 0 for row in table
    )

    differences = read(tmp_path / "differences.csv")
    assert [row["minus"] for row in differences] == ["explodes, uniform reduction=sum"] * (ROWS - 1)
    p = np.nan_to_num(
        [stats.ttest_rel(row, over_seeds[5]).pvalue for row in over_seeds[:5]], nan=1.0
    )  # nan: equal throughout
    assert [float(row["difference"]) for row in differences] == pytest.approx(
        (over_seeds[:5] - over_seeds[5]).mean(axis=1), abs=1e-6
    )
    assert [float(row["p"]) for row in differences] == pytest.approx(p, rel=1e-5)
    ordered = np.argsort(p)
    stepped = np.maximum.accumulate([min(1, (5 - k) * p[i]) for k, i in enumerate(ordered)])
    assert [float(differences[i]["p_holm"]) for i in ordered] == pytest.approx(stepped, rel=1e-5)

    _, ranking = result.ranking(0)
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*over_seeds).pvalue)
    assert ranking.ranks == pytest.approx(stats.rankdata(-over_seeds, axis=0).mean(axis=1))


def test_a_failed_run_is_in_the_table_and_leaves_the_rest(
    recipe: Path, toy_registry: Registry, tmp_path: Path
):
    result, jobs = swept(recipe, toy_registry, leave_out=3)
    write_tables(result, tmp_path)
    row = read(tmp_path / "sweep.csv")[1]
    assert (row["seeds"], row["failed"], row["error"]) == (
        "0",
        "1",
        "outer step 2: the loss is nan",
    )
    assert (
        read(tmp_path / "differences.csv")[1]["seeds"] == "0"
    )  # compared over the seeds that both have
    with pytest.raises(ValueError, match="1 of 6 rows have a run that did not finish"):
        result.ranking(0)
    page = write_sweep_report(tmp_path / "page.html", result, jobs, recipe).read_text()
    assert "11 of 12 runs finished" in page
    assert "outer step 2: the loss is nan" in page
    assert "Not drawn: 1 of 6 rows have a run that did not finish." in page


def test_runs_on_other_data_are_not_compared(recipe: Path, toy_registry: Registry):
    result, jobs = swept(recipe, toy_registry)
    path = jobs[2].directory / "result.json"
    path.write_text(re.sub(r'"episode_set": "\w+"', '"episode_set": "0123"', path.read_text()))
    with pytest.raises(
        RunError,
        match="episode set 0123, but .* has .*: the data has changed. Delete one of them and",
    ):
        collect(result.plan, jobs)


def test_the_page_holds_its_tables_and_pictures(
    recipe: Path, toy_registry: Registry, tmp_path: Path
):
    result, jobs = swept(recipe, toy_registry)
    page = write_sweep_report(
        tmp_path / "page.html", result, jobs, recipe, ["outer.steps=3"]
    ).read_text()
    assert "# -s outer.steps=3\n" in page.replace("</pre>", "\n")
    assert page.count("<svg") == 2  # a heat map and the mean ranks
    for item in result.rows:
        assert f"{item.score:.4f}" in page
    assert f'href="runs/{jobs[0].directory.name}/report.html"' in page
    assert not re.search(r"(src|href)=\"?http|url\(http|@import|<script", page)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (420, True)])
def test_the_page_in_a_browser(
    look, recipe: Path, toy_registry: Registry, tmp_path: Path, width: int, dark: bool
):
    result, jobs = swept(recipe, toy_registry)
    seen = look(
        write_sweep_report(tmp_path / "page.html", result, jobs, recipe),
        tmp_path / "profile",
        width,
        dark,
    )
    assert (seen.svgs, seen.figures, seen.unseen) == (2, 2, 0)
    assert seen.rows == (1 + ROWS) + (1 + ROWS - 1)
    assert not seen.fetched
    assert seen.overflow <= 0

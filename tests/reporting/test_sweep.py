"""The figures of a sweep, computed again by other means from the files of its runs; its page in a
browser."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fsl_core.config.matrix import read_matrix
from fsl_core.errors import RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting.scores import RunScores
from fsl_core.reporting.statistics import holm, two_level
from fsl_core.reporting.sweep import (
    Row,
    RowResult,
    SweepResult,
    _ranked,
    collect,
    column,
    table,
    write_tables,
)
from fsl_core.reporting.sweep_paper import paper_table
from fsl_core.reporting.sweep_report import write_sweep_report
from fsl_core.runs.opening import new_run
from fsl_core.sweeping.jobs import make_jobs
from fsl_core.sweeping.plan import Plan, plan_sweep
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

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


def swept(recipe: Path, loaded: Loaded, leave_out: int | None = None) -> tuple[SweepResult, list]:
    """Every run of the recipe's matrix, in this process; one of them may have failed."""
    plan = plan_sweep(
        read_matrix(recipe, loaded.catalogue, ["outer.steps=3", "outer.validate_every=0"])
    )
    jobs = make_jobs(plan.cells, recipe.parent / "sweep" / "runs")
    for i, job in enumerate(jobs):
        if i == leave_out:
            job.state, job.error = "failed", "outer step 2: the loss is nan"
            continue
        with new_run(job.directory, job.cell.recipe, loaded, torch.device("cpu"), []) as run:
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


def test_the_tables_are_those_of_the_runs(recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    result, jobs = swept(recipe, toy_plugins)
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

    judged = {(row["norm"], row["transductive"], row["n_query"]) for row in table}
    assert judged == {("none", "False", "4")}
    blocks = r"2 blocks \(2 seeds on 1 data set\), and Friedman's test needs 11"
    with pytest.raises(ValueError, match=blocks):
        result.ranking()  # 40 test episodes are not 40 blocks


def test_seeds_and_episodes_are_tested_together(recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    result, jobs = swept(recipe, toy_plugins)
    write_tables(result, tmp_path)
    each = scores(jobs)
    for row, of_row in zip(read(tmp_path / "sweep.csv"), each, strict=True):
        assert float(row["interval_seeds"]) == pytest.approx(two_level(of_row).interval, abs=1e-6)
    found = [two_level(of_row - each[5]) for of_row in each[:5]]
    differences = read(tmp_path / "differences.csv")
    assert [float(row["interval_seeds"]) for row in differences] == pytest.approx(
        [both.interval for both in found], abs=1e-6
    )
    assert [float(row["p_seeds_holm"]) for row in differences] == pytest.approx(
        holm([both.p for both in found]), rel=1e-5
    )


def test_a_table_for_a_paper():
    """Bold: the best of each setting and what ties with it; intervals over seeds and episodes."""
    random = np.random.default_rng(1)
    scores = random.random((2, 1, 1, 60)) + 0.02 * random.standard_normal((2, 3, 2, 60))
    scores[0] += np.array([0, 0, 0.5])[:, None, None]  # the last one is ahead on the first alone
    result = made_up(scores)
    ranked = _ranked(result.rows, True)
    table = paper_table(replace(result, rows=tuple(ranked)))
    assert table.headings == ["adapter", "data 0", "data 1"]
    assert [row[0] for row in table.rows] == ["a", "b", "c"]
    assert {cell for cell in table.bold if cell[1] == 1} == {(2, 1)}
    assert {cell for cell in table.bold if cell[1] == 2} >= {(0, 2), (1, 2), (2, 2)}
    both = two_level(scores[0, 2])
    assert table.rows[2][1] == f"{both.mean:.3f} ± {both.interval:.3f}"
    assert rf"\textbf{{{both.mean:.3f} $\pm$ {both.interval:.3f}}}" in table.latex()
    assert table.csv().splitlines()[0] == "adapter,data 0,data 1,best"


def test_a_failed_run_is_in_the_table_and_leaves_the_rest(
    recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    result, jobs = swept(recipe, toy_plugins, leave_out=3)
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
        result.ranking()
    page = write_sweep_report(tmp_path / "page.html", result, jobs, recipe).read_text()
    assert "11 of 12 runs finished" in page
    assert "outer step 2: the loss is nan" in page
    assert "Mean ranks left out: 1 of 6 rows have a run that did not finish." in page


def test_a_run_deleted_before_the_end_fails_alone(recipe: Path, toy_plugins: Loaded):
    result, jobs = swept(recipe, toy_plugins)
    shutil.rmtree(jobs[4].directory)
    again = collect(result.plan, jobs)
    assert [job.state for job in jobs].count("failed") == 1
    assert "no result.json here. A finished run" in table(again)[2]["error"]
    assert [len(item.runs) for item in again.rows] == [2, 2, 1, 2, 2, 2]


def test_runs_on_other_data_are_not_compared(recipe: Path, toy_plugins: Loaded):
    result, jobs = swept(recipe, toy_plugins)
    path = jobs[2].directory / "result.json"
    path.write_text(re.sub(r'"episode_set": "\w+"', '"episode_set": "0123"', path.read_text()))
    with pytest.raises(
        RunError,
        match="episode set 0123, but .* has .*: the data has changed. Delete one of them and",
    ):
        collect(result.plan, jobs)


def test_the_page_holds_its_tables_and_pictures(recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    result, jobs = swept(recipe, toy_plugins)
    page = write_sweep_report(
        tmp_path / "page.html", result, jobs, recipe, ["outer.steps=3"]
    ).read_text()
    assert "# -s outer.steps=3\n" in page.replace("</pre>", "\n")
    assert page.count("<svg") == 2  # a heat map and the curves; the mean ranks are left out
    assert "accuracy of training episodes over training, mean over seeds" in page
    left_out = (
        "Mean ranks left out: 2 blocks (2 seeds on 1 data set), and Friedman&#39;s test needs 11"
    )
    assert left_out in page
    assert "Norm none: predictions do not depend on the other queries; 4 queries a class." in page
    assert "ntervals are over test episodes of these trained runs, not over trainings" in page
    for item in result.rows:
        assert f"{item.score:.4f}" in page
    assert f'href="runs/{jobs[0].directory.name}/report.html"' in page
    assert not re.search(r"(src|href)=\"?http|url\(http|@import|<script", page)


def judged(scores: np.ndarray, norm: str = "none", **more: object) -> RunScores:
    result = {"metric": "accuracy", "norm": norm, "transductive": norm == "transductive"}
    result |= {"n_query": 15, "episode_set": "0", "adaptation_seconds": 1, "training_seconds": 1}
    return RunScores(Path("run"), {**result, **more}, scores)


def made_up(scores: np.ndarray, runs: list[dict] | None = None) -> SweepResult:
    """Scores (settings, rows, seeds, episodes); the first two settings are of one data set."""
    rows = []
    for setting, of_setting in enumerate(scores):
        for n, of_row in enumerate(of_setting):
            labels = {"adapter": "abcdef"[n], "data": str(setting)}
            row = Row(labels, (), setting, str(max(1, setting)), 0)
            more = runs[n] if runs else {}
            seeds = {str(seed): judged(each, **more) for seed, each in enumerate(of_row)}
            rows.append(RowResult(row, seeds, (), 1.0))
    plan = Plan(None, tuple(row.row for row in rows), ("adapter",), ("data",))
    return SweepResult(plan, "accuracy", tuple(rows), ())


def test_ranks_are_over_seeds_and_data_sets():
    """Two settings of one data set count once, with their mean; episodes do not count."""
    random = np.random.default_rng(0)
    scores = random.random((4, 3, 5, 30)) + np.array([0, 0.1, 0.3])[:, None, None]
    titles, found = made_up(scores).ranking()
    by_run = scores.mean(axis=-1)
    blocks = np.concatenate([by_run[:2].mean(axis=0).T, by_run[2].T, by_run[3].T])
    assert titles == ["a", "b", "c"]
    assert found.blocks == len(blocks) == 15
    assert found.p == pytest.approx(stats.friedmanchisquare(*blocks.T).pvalue)
    assert found.ranks == pytest.approx(stats.rankdata(-blocks, axis=1).mean(axis=0))
    told = made_up(scores).ranks_told()
    assert told.startswith("mean ranks over 15 blocks (Friedman: p = ")
    assert told.endswith(
        f": c {found.ranks[2]:.2f}, b {found.ranks[1]:.2f}, a {found.ranks[0]:.2f}"
    )


def test_ranks_need_every_row_in_every_block():
    result = made_up(np.random.default_rng(0).random((4, 3, 5, 30)))
    few = made_up(np.random.default_rng(0).random((3, 3, 5, 30)))
    with pytest.raises(ValueError, match=r"10 blocks \(5 seeds on 2 data sets\), and Friedman"):
        few.ranking()
    lacking = SweepResult(result.plan, "accuracy", result.rows[1:], ())
    with pytest.raises(ValueError, match="not every row was run with every seed on every data"):
        lacking.ranking()


def test_what_keeps_rows_apart_is_a_column_and_a_line():
    scores = np.random.default_rng(0).random((1, 4, 1, 30))
    alike = made_up(scores)
    assert alike.telling_columns() == []
    assert alike.told_once() == [
        "norm none: predictions do not depend on the other queries; 15 queries a class",
        "one seed: intervals are over test episodes of these trained runs, not over trainings",
    ]
    norms = [{"norm": "transductive"}, {}, {}, {}]
    unlike = made_up(scores, [{**more, "n_query": 5 * (n + 1)} for n, more in enumerate(norms)])
    assert unlike.telling_columns() == ["norm", "n_query"]
    first, norm, queries = unlike.told_once()
    assert first.startswith("one seed: ")
    assert norm == (
        "not judged alike: data 0, a (norm transductive: predictions depend on the other "
        "queries); 3 rows (norm none: predictions do not depend on the other queries). "
        "Differences between them are due to this, too"
    )
    assert queries.startswith("not judged alike: data 0, a (5 queries a class); data 0, b (10 ")


def test_further_sources_have_columns(tmp_path: Path):
    """`evaluate.on`: score and interval over the same seeds; a row without one has gaps."""
    random = np.random.default_rng(0)
    scores, on_mnist = random.random((1, 2, 2, 30)), random.random((2, 30))
    result = made_up(scores)
    runs = result.rows[1].runs
    for seed, run in list(runs.items()):
        elsewhere = RunScores(run.directory, run.result, on_mnist[int(seed)], label="mnist")
        runs[seed] = replace(run, further={"mnist": elsewhere})
    write_tables(result, tmp_path)
    without, with_mnist = read(tmp_path / "sweep.csv")
    assert (without["accuracy on mnist"], without["interval on mnist"]) == ("", "")
    each = on_mnist.mean(axis=0)
    assert float(with_mnist["accuracy on mnist"]) == pytest.approx(each.mean(), abs=1e-6)
    interval = 1.96 * each.std(ddof=1) / len(each) ** 0.5
    assert float(with_mnist["interval on mnist"]) == pytest.approx(interval, abs=1e-5)
    assert float(with_mnist["accuracy"]) == pytest.approx(scores[0, 1].mean(), abs=1e-6)
    (tmp_path / "r.yaml").write_text("matrix: {}")
    page = write_sweep_report(tmp_path / "page.html", result, [], tmp_path / "r.yaml").read_text()
    assert '<th class="number">accuracy on mnist</th>' in page
    assert f"{each.mean():.4f} ± {interval:.4f}" in page


def test_the_hypergradient_is_told():
    """Where all rows share one it is a line; where they differ a column, unless an axis shows it."""
    scores = np.random.default_rng(0).random((1, 2, 1, 30))
    shared = made_up(scores, [{"hypergradient": "implicit"}] * 2)
    assert shared.told_once()[0] == "hypergradient implicit"
    assert shared.telling_columns() == []
    assert [row["hypergradient"] for row in table(shared)] == ["implicit", "implicit"]
    unlike = made_up(scores, [{"hypergradient": "implicit"}, {}])
    assert unlike.telling_columns() == ["hypergradient"]
    assert unlike.told_once()[0].startswith("norm none")
    assert [row["hypergradient"] for row in table(unlike)] == ["implicit", "unrolled"]
    axis = "outer.hypergradient"
    rows = [
        replace(item, row=replace(item.row, labels={axis: item.hypergradient}))
        for item in unlike.rows
    ]
    shown = replace(unlike, rows=tuple(rows), plan=replace(unlike.plan, varying=(axis,)))
    assert shown.telling_columns() == []


def test_an_axis_with_the_name_of_a_column():
    assert [column(axis) for axis in ("norm", "rank", "p", "adapter")] == [
        "matrix.norm",
        "matrix.rank",
        "matrix.p",
        "adapter",
    ]


def test_names_in_tables_are_no_formulas(recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    hostile = '"\\e[2J$\\\\frac{$"'
    names = ["=1+1", "-3", hostile]
    budgets = ", ".join(f"{name}: {{outer.steps: {n + 2}}}" for n, name in enumerate(names))
    budgets = f"budget: {{{budgets}}}"
    recipe.write_text(recipe.read_text().split("matrix:")[0] + f"matrix:\n  {budgets}\n")
    plan = plan_sweep(read_matrix(recipe, toy_plugins.catalogue))
    runs = {"0": judged(np.linspace(0, 1, 9))}
    result = SweepResult(
        plan, "accuracy", tuple(RowResult(r, runs, (), 1.0) for r in plan.rows), ()
    )
    write_tables(result, tmp_path)
    shown = ["'=1+1", "-3", r"\x1b[2J$\frac{$"]
    assert [row["budget"] for row in read(tmp_path / "sweep.csv")] == shown
    write_tables(result, tmp_path, raw=True)
    assert [row["budget"] for row in read(tmp_path / "sweep.csv")] == [
        "=1+1",
        "-3",
        "\x1b[2J$\\frac{$",
    ]


@pytest.mark.slow
def test_a_page_of_odd_names_in_a_narrow_window(look, tmp_path: Path):
    """Its mean ranks are drawn, what keeps rows apart has columns, and no name leaves its place."""
    scores = np.random.default_rng(0).random((4, 3, 5, 30)) + np.arange(3)[:, None, None]
    runs = [{"norm": "transductive"}, {"n_query": 5}, {}]
    result = made_up(scores, runs)
    names = dict(zip("abc", [r"$\frac{$", "long" * 75, "\x1b[2J <b>模型"], strict=True))
    for item in result.rows:
        item.row.labels["adapter"] = names[item.row.labels["adapter"]]
    (tmp_path / "r.yaml").write_text("matrix: {}")
    page = write_sweep_report(tmp_path / "page.html", result, [], tmp_path / "r.yaml")
    assert "\x1b" not in page.read_text()
    seen = look(page, tmp_path / "profile", 420)
    assert (seen.svgs, seen.figures, seen.unseen) == (1, 1, 0)
    assert not seen.fetched
    assert seen.overflow <= 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (420, True)])
def test_the_page_in_a_browser(
    look, recipe: Path, toy_plugins: Loaded, tmp_path: Path, width: int, dark: bool
):
    result, jobs = swept(recipe, toy_plugins)
    seen = look(
        write_sweep_report(tmp_path / "page.html", result, jobs, recipe),
        tmp_path / "profile",
        width,
        dark,
    )
    assert (seen.svgs, seen.figures, seen.unseen) == (2, 2, 0)
    assert seen.rows == (1 + ROWS) + (1 + ROWS - 1)
    assert seen.cut == 0  # p and Holm's p too: in a narrow window, rows are lists
    assert not seen.fetched
    assert seen.overflow <= 0

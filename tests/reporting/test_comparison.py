"""`fsl compare`: held against scipy on the episodes of two runs, and refused where they are not the
same."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting.statistics import two_level
from fsl_core.runs.opening import new_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train
from tests.parts.command_line import Call


@pytest.fixture
def compare(in_process: Call) -> Call:
    return partial(in_process, "compare")


@pytest.fixture
def runs(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    """Runs `a` and `b` of two seeds, and `c` on other episodes."""
    changes = {"a": ["seed=0"], "b": ["seed=1"], "c": ["evaluate.seed=7", "episodes.spread=0.4"]}
    for name, overrides in changes.items():
        recipe = read_recipe(
            toy_recipe, toy_plugins.catalogue, ["outer.steps=3", "episodes.spread=1.5", *overrides]
        )
        with new_run(tmp_path / name, recipe, toy_plugins, torch.device("cpu"), []) as run:
            train(run)
            judge(run)
    return tmp_path


def scores(directory: Path) -> np.ndarray:
    with (directory / "episodes.csv").open() as file:
        return np.array([float(row["accuracy"]) for row in csv.DictReader(file)])


def test_compare(compare, runs: Path):
    first, second = scores(runs / "a"), scores(runs / "b")
    reference = stats.ttest_rel(second, first)
    found = json.loads(compare("a", "b", "--json", "--html", "page.html").out)
    assert found["difference"] == pytest.approx((second - first).mean())
    assert found["p"] == pytest.approx(reference.pvalue)
    assert found["difference"] + found["interval"] == pytest.approx(
        reference.confidence_interval(0.95).high
    )
    assert [found[key] for key in ("wins", "ties", "losses")] == [
        int(f(second, first).sum()) for f in (np.greater, np.equal, np.less)
    ]
    assert (
        found["episode_set"] == json.loads((runs / "a" / "result.json").read_text())["episode_set"]
    )

    page = (runs / "page.html").read_text()
    assert "b minus a" in page
    assert page.count("<svg") == 1
    assert not re.search(r"(src|href)=\"?http|url\(http|@import|<script", page)

    told = compare("a", "b").out
    assert f"second minus first: {found['difference']:+.4f} ± {found['interval']:.4f}" in told
    assert (
        f"better on {found['wins']} episodes, equal on {found['ties']}, worse on {found['losses']}"
        in told
    )


def test_how_runs_were_judged_is_told(compare, runs: Path):
    alike = compare("a", "b", "--html", "page.html").out
    shared = "norm none: predictions do not depend on the other queries; 4 queries a class"
    trained = "this tells of these trained runs on new episodes, not of new trainings"
    assert f"{shared}\n" in alike
    assert f"{trained}\n" in alike
    assert f"N{shared[1:]}." in (runs / "page.html").read_text()
    assert "It tells of these trained runs on new episodes" in (runs / "page.html").read_text()

    path = runs / "b" / "result.json"
    result = {**json.loads(path.read_text()), "norm": "transductive", "transductive": True}
    path.write_text(json.dumps({**result, "n_query": 9}))
    unlike = [line for line in compare("a", "b").out.splitlines() if line.startswith("not judged")]
    assert unlike == [
        "not judged alike: a (norm none: predictions do not depend on the other queries); "
        "b (norm transductive: predictions depend on the other queries). "
        "Differences between them are due to this, too",
        "not judged alike: a (4 queries a class); b (9 queries a class). "
        "Differences between them are due to this, too",
    ]
    found = json.loads(compare("a", "b", "--json", "--html", "page.html").out)
    assert found["notes"] == unlike
    judging = {"norm": "transductive", "transductive": True, "n_query": 9, "classes": True}
    judging["episodes"] = ""  # they are of one shape
    assert found["judging"]["second"] == judging
    assert all(f"N{line[1:]}." in (runs / "page.html").read_text() for line in unlike)


def test_the_hypergradient_is_part_of_the_method(compare, runs: Path):
    def trained_with(name: str, estimate: str) -> None:
        file = runs / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"hypergradient": estimate}))

    assert "hypergradient" not in compare("a", "b").out
    trained_with("b", "implicit")
    line = "another method: hypergradient unrolled (a), implicit (b)"
    assert f"\n{line}\n" in compare("a", "b", "--html", "page.html").out
    assert line.capitalize() in (runs / "page.html").read_text()
    found = json.loads(compare("a", "b", "--json").out)
    assert found["hypergradient"] == {"first": "unrolled", "second": "implicit"}
    assert line in found["notes"]
    trained_with("a", "implicit")
    assert "\nhypergradient implicit\n" in compare("a", "b").out


def test_a_run_of_an_earlier_version_has_its_queries_in_its_recipe(compare, runs: Path):
    for name in "ab":
        path = runs / name / "result.json"
        result = json.loads(path.read_text())
        del result["n_query"], result["transductive"]
        path.write_text(json.dumps(result))
    assert "; 4 queries a class\n" in compare("a", "b").out
    (runs / "a" / "recipe.yaml").unlink()
    assert "a (an unknown number of queries); b (4 queries a class)" in compare("a", "b").out


def test_directories_with_odd_names(compare, runs: Path):
    before = "b"
    for name in (r"$\frac{$", "\x1b[2J <b>", "b" * 250):
        (runs / before).rename(runs / name)
        before = name
        ended = compare("a", name, "--html", "page.html")
        assert ended.code == 0
        page = (runs / "page.html").read_text()
        assert not [
            found for found in ("\x1b", "<b>") if found in ended.out.replace(" <b>", "") + page
        ]


def test_other_episodes_are_refused(compare, runs: Path):
    ended = compare("a", "c")
    assert ended.code == 2
    hashes = [json.loads((runs / name / "result.json").read_text())["episode_set"] for name in "ca"]
    assert (
        f"c: episode set {hashes[0]}, but a has {hashes[1]}; they differ in episodes.spread (0.4, 1.5), evaluate.seed (7, 0). "
        in ended.err
    )
    assert not ended.out


TABLE = "a/episodes.csv: no table of episodes with a column accuracy. Delete a/result.json: "


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", None, "a: no result.json here. A finished run; `fsl resume` finishes one"),
        ("episodes.csv", None, TABLE.replace(" with a column accuracy", "")),
        ("episodes.csv", "episode\n1\n", TABLE),
        (
            "episodes.csv",
            "episode,accuracy\n0,0.5\n",
            "a/episodes.csv: 1 episodes, whose mean is not that of result.json. ",
        ),
    ],
)
def test_runs_that_cannot_be_compared(
    compare, runs: Path, name: str, content: str | None, message: str
):
    (runs / "a" / name).unlink() if content is None else (runs / "a" / name).write_text(content)
    ended = compare("a", "b")
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
def many(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    """Two methods with two seeds each."""
    for name, seed, steps in (("a0", 0, 3), ("a1", 1, 3), ("b0", 0, 2), ("b1", 1, 2)):
        changes = [f"seed={seed}", f"outer.steps={steps}", "episodes.spread=1.5"]
        recipe = read_recipe(toy_recipe, toy_plugins.catalogue, changes)
        with new_run(tmp_path / name, recipe, toy_plugins, torch.device("cpu"), []) as run:
            train(run)
            judge(run)
    return tmp_path


def test_many_runs_are_methods_over_seeds(compare, many: Path):
    names = ("a0", "a1", "b1", "b0")
    found = json.loads(compare(*names, "--json", "--html", "page.html").out)
    first, second = found["methods"]
    assert (first["name"], first["seeds"]) == ("a0", ["0", "1"])
    assert second["seeds"] == ["1", "0"]
    of_a, of_b = (np.stack([scores(many / f"{name}{s}") for s in (0, 1)]) for name in "ab")
    against = second["minus_first"]
    reference = stats.ttest_rel(of_b.mean(axis=0), of_a.mean(axis=0))
    assert against["paired"]["difference"] == pytest.approx((of_b - of_a).mean())
    assert against["paired"]["p"] == pytest.approx(float(np.nan_to_num(reference.pvalue, nan=1.0)))
    assert against["both"]["interval"] == pytest.approx(two_level(of_b - of_a).interval)
    assert "2 methods minus a0" in (many / "page.html").read_text()
    told = compare(*names).out
    assert "minus a0" in told
    assert f"{against['paired']['difference']:+.4f} ± " in told


def test_runs_that_are_no_comparison(compare, many: Path):
    assert compare("a0", "a0", "b0").code == 2
    assert "seed 0 of the same recipe as a0. Each run once" in compare("a0", "a0", "b0").err
    assert "one run. Two or more" in compare("a0").err

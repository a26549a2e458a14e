"""A run is judged on further sources too: each has its row, its hash and its interval."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fsl_core as fsl
from fsl_core.engine.evaluation import evaluate
from fsl_core.hooks.loader import load
from fsl_core.runs.files import check_files
from fsl_core.runs.opening import open_run
from tests.parts.command_line import Call

ON = """\
evaluate:
  episodes: 12
  on:
  - {name: blobs, spread: 2.0, label: wide}
  - {name: blobs, spread: 0.1, n_query: 2, label: narrow}
"""


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    text = toy_recipe.read_text()
    toy_recipe.write_text(text.replace("evaluate: {episodes: 10}\n", ON))
    assert toy_recipe.read_text() != text
    return toy_recipe


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_each_row_is_that_of_an_evaluation_by_hand(call: Call, recipe: Path, tmp_path: Path):
    ended = call("run", recipe, "--out", "out")
    assert ended.code == 0, ended.err
    run = tmp_path / "out"
    result = result_of(run)
    check_files(run)
    assert list(result["on"]) == ["wide", "narrow"]
    blobs = load(entry_points=False, files=[recipe.parent / "fslplugin.py"]).catalogue.get(
        "episodes", "blobs"
    )
    with (run / "episodes.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    with open_run(run, "cpu", write=False) as opened:
        opened.restore_for_evaluation()
        learner = opened.experiment.learner
        for label, source in (
            ("wide", blobs.factory(spread=2.0)),
            ("narrow", blobs.factory(spread=0.1, n_query=2)),
        ):
            found, row = evaluate(learner, source, "test", 12), result["on"][label]
            assert row["episode_set"] == found.episode_set
            assert row["n_query"] == source.task.n_query
            assert [float(line[f"accuracy on {label}"]) for line in table] == found.scores
            assert [float(line[f"loss on {label}"]) for line in table] == found.losses
            assert {**row, **found.summary()} == row
            told = f"test on {label} accuracy {row['accuracy']:.4f} ± {row['interval']:.4f}"
            assert told in ended.out
    assert (
        result["on"]["narrow"]["accuracy"] > result["accuracy"] > result["on"]["wide"]["accuracy"]
    )
    page = (run / "report.html").read_text()
    rows = page.partition('id="judged-on"')[2].partition("</table>")[0]
    assert re.findall(r'"name">(\w+)<', rows) == ["blobs", "wide", "narrow"]
    for row in result["on"].values():
        assert f"± {row['interval']:.4f}" in rows
        assert row["episode_set"] in rows


def test_without_further_sources_nothing_is_added(call: Call, toy_recipe: Path, tmp_path: Path):
    call("run", toy_recipe, "--out", "out")
    assert "on" not in result_of(tmp_path / "out")
    header = (tmp_path / "out" / "episodes.csv").read_text().splitlines()[0]
    assert header == "episode,accuracy,loss"
    assert "judged-on" not in (tmp_path / "out" / "report.html").read_text()


def test_runs_are_compared_on_every_source(call: Call, recipe: Path, tmp_path: Path):
    call("run", recipe, "--out", "one")
    call("run", recipe, "--out", "two", "-s", "seed=1")
    compared = call("compare", "one", "two", "--html", "c.html")
    assert compared.code == 0, compared.err
    texts = [(tmp_path / name / "episodes.csv").read_text() for name in ("one", "two")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    for label in ("wide", "narrow"):
        one, two = (np.array([float(r[f"accuracy on {label}"]) for r in t]) for t in tables)
        found = fsl.compare(tmp_path / "one", tmp_path / "two", on=label)
        assert found.difference == pytest.approx((two - one).mean())
        if (two != one).any():
            assert found.p == pytest.approx(stats.ttest_rel(two, one).pvalue)
        told = f"on {label}: second minus first: {found.difference:+.4f} ± {found.interval:.4f}"
        assert told in compared.out
        alone = json.loads(call("compare", "one", "two", "--on", label, "--json").out)
        whole = json.loads(call("compare", "one", "two", "--json").out)["on"][label]
        assert {**alone, **whole} == alone
        assert alone["second"] == result_of(tmp_path / "two")["on"][label]["accuracy"]
    rows = (tmp_path / "c.html").read_text().partition('id="further"')[2].partition("</table>")[0]
    assert re.findall(r'"name">(\w+)<', rows) == ["wide", "narrow"]


def test_runs_trained_on_other_data_are_compared_where_they_were_judged_alike(
    call: Call, recipe: Path
):
    call("run", recipe, "--out", "one")
    other = ("-s", "episodes.spread=0.5", "-s", "evaluate.on.0.spread=3")
    call("run", recipe, "--out", "two", *other)
    refused = call("compare", "one", "two")
    assert refused.code == 2
    assert refused.err.endswith(
        "they differ in episodes.spread (0.5, 0.3). "
        "Two runs judged on the same test episodes, or --on narrow\n"
    )
    assert "second minus first" in call("compare", "one", "two", "--on", "narrow").out
    refused = call("compare", "one", "two", "--on", "wide")
    assert "they differ in evaluate.on wide.spread (3.0, 2.0). Two runs" in refused.err
    refused = call("compare", "one", "two", "--on", "mnist")
    assert refused.err == "one: not judged on 'mnist'. Its labels: wide, narrow\n"


def test_what_only_one_run_was_judged_on_is_told(call: Call, recipe: Path):
    call("run", recipe, "--out", "one")
    call("run", recipe, "--out", "two", "-s", "evaluate.on=[]")
    compared = call("compare", "one", "two")
    assert "on wide: not judged by both runs on the same test episodes" in compared.out
    notes = json.loads(call("compare", "one", "two", "--json").out)["notes"]
    assert notes[-1] == "on narrow: not judged by both runs on the same test episodes"


def test_eval_on_other_data(call: Call, recipe: Path, tmp_path: Path):
    call("run", recipe, "--out", "out")
    result = result_of(tmp_path / "out")
    for given in (["wide"], ["spread=2"], ["name=blobs", "spread=2.0"]):
        options = [word for text in given for word in ("--on", text)]
        found = json.loads(call("eval", "out", *options, "--json").out)
        assert found["episode_set"] == result["on"]["wide"]["episode_set"]
        assert found["accuracy"] == result["on"]["wide"]["accuracy"]
    shown = call("eval", "out", "--on", "wide", "--on", "n_way=4", "--split", "validation")
    assert shown.out.startswith("validation on wide accuracy 0.")
    assert result_of(tmp_path / "out") == result


def test_expected_figures_of_further_sources(call: Call, recipe: Path):
    recipe.write_text(
        recipe.read_text()
        + "expect:\n  accuracy_on_narrow: {value: 1.0, tolerance: 0.2}\n"
        + "  accuracy_on_wide: {value: 0.0, tolerance: 0.1}\n"
    )
    ended = call("reproduce", recipe, "--out", "out")
    assert ended.code == 1
    assert re.search(r"^reproduced: accuracy_on_narrow [01]\.", ended.out, re.MULTILINE)
    assert re.search(r"^NOT reproduced: accuracy_on_wide 0\.", ended.out, re.MULTILINE)
    refused = call("check", recipe, "-s", "expect={accuracy_on_x: {value: 1, tolerance: 1}}")
    assert "accuracy, accuracy_on_wide, accuracy_on_narrow, or accuracy_after_" in refused.err


def test_a_source_that_does_not_fit_is_refused_with_its_line(call: Call, recipe: Path):
    text = recipe.read_text()
    recipe.write_text(text.replace("- {name: blobs, spread: 2.0, label: wide}", "- {name: glyphs}"))
    refused = call("check", recipe)
    assert refused.err.endswith(
        "toy.yaml:16: evaluate.on.0: 'glyphs' has input_shape (1, 28, 28), and the run is trained "
        "on (2,). A source that fits the backbone\n"
    )


def test_a_head_for_other_ways_is_refused_with_its_line(call: Call, recipe: Path):
    refused = call("check", recipe, "-s", "adapter=explodes", "-s", "evaluate.on.1.n_way=5")
    found = "evaluate.on.1 (with -s evaluate.on.1.n_way): adapter.head.weight of adapter 'explodes'"
    assert found in refused.err


def test_a_mixture_is_trained_judged_and_used_again(call: Call, recipe: Path, tmp_path: Path):
    sources = "{name: blobs, spread: 0.2, weight: 3}, {name: blobs, spread: 0.5}"
    mixed = ("-s", f"episodes={{name: mixture, sources: [{sources}]}}")
    ended = call("run", recipe, "--out", "out", *mixed)
    assert ended.code == 0, ended.err
    assert result_of(tmp_path / "out")["episodes_name"] == "mixture"
    again = json.loads(call("eval", "out", "--json").out)
    assert again["accuracy"] == result_of(tmp_path / "out")["accuracy"]
    wrong = "{name: blobs}, {name: blobs, n_way: 4}"
    refused = call("check", recipe, "-s", f"episodes={{name: mixture, sources: [{wrong}]}}")
    assert refused.err.endswith(
        "sources.1: 'blobs' has n_way 4, and 'blobs' has 3. Sources with tasks of one shape\n"
    )


def test_a_killed_run_ends_to_the_same_bits(call: Call, recipe: Path, tmp_path: Path):
    call("run", recipe, "--out", "whole")
    call("run", recipe, "--out", "cut")
    (tmp_path / "cut" / "result.json").unlink()
    assert call("resume", "cut").code == 0
    for name in ("whole", "cut"):
        result = result_of(tmp_path / name)
        rows = [dict(row, adaptation_seconds=0) for row in result["on"].values()]
        assert rows == [
            dict(row, adaptation_seconds=0) for row in result_of(tmp_path / "whole")["on"].values()
        ]

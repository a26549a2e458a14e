"""Which trials a search asks for, ends early and tests; made-up runs stand for training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import fsl_core as fsl
from fsl_core.builtin.random_search import RandomSearch
from fsl_core.config.search import Search, read_search
from fsl_core.errors import PluginError, RecipeError, RunError
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting.search import told_of, trial_rows
from fsl_core.runs.trial import describe
from fsl_core.sweeping.jobs import TrialJob
from fsl_core.sweeping.schedule import run_jobs
from fsl_core.sweeping.search import Searching, checked_metric
from fsl_core.sweeping.start import Settings

SEARCH = """
search:
  trials: 6
  batch: 3
  space: {outer.optimizer.lr: {low: 0.001, high: 0.1, log: true}}
  methods:
    wide: {backbone.hidden: [8, 8], space: {adapter.distance: [euclidean, cosine]}}
    plain: {backbone.hidden: [8]}
"""
VALIDATED = (5, 10, 12)


class Halving(RandomSearch):
    """Ends what is far below the best complete trial at that step, and follows the best."""

    name = "halving"

    def propose(self, study, trials):
        proposed = dict(super().propose(study, trials))
        scores = [t.score for t in trials if t.score is not None]
        if scores:
            proposed["outer.optimizer.lr"] = 0.001 + 0.09 * max(scores) * (len(trials) % 4 + 1) / 5
        return proposed

    def prune(self, study, trials, scores):
        step = max(scores)
        others = [t.scores[step] for t in trials if t.state == "complete"]
        return bool(others) and scores[step] < 0.95 * max(others)


@dataclass
class Played(fsl.Launcher):
    """Runs that take as many polls as they have validations, at speeds of their own."""

    name = "played"
    outlives = False
    at_once: int | None = 1
    speed: int = 0
    polls: int = 10**9
    fault: str = ""

    def __post_init__(self):
        self.running: dict[Path, list[int]] = {}
        self.stopped: list[Path] = []
        self.random = random.Random(self.speed)

    def start(self, work: Sequence[fsl.Work]) -> None:
        for one in work:
            self.running[one.run] = []
            if not json.loads((one.run / "trial.json").read_text())["test"]:
                (one.run / "metrics.jsonl").unlink(missing_ok=True)

    def poll(self, run: Path) -> fsl.Ended | None:
        self.polls -= 1
        if self.polls < 0:
            raise KeyboardInterrupt
        if run in self.stopped:
            return fsl.Ended(143, "stopped")
        trial = json.loads((run / "trial.json").read_text())
        if trial["test"]:
            log(run, "tested")
            (run / "result.json").write_text("{}")
            return fsl.Ended(0)
        if self.speed and self.random.random() < 0.5:
            return None
        done = self.running[run]
        step = VALIDATED[len(done)]
        if self.fault and trial["numbers"][0] == 2 and trial["method"] == "plain":
            return self._fails(run)
        score = score_of(trial["parameters"]) * (0.5 + step / 24)
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"step": step, "split": "validation", "accuracy": score}))
            metrics.write("\n")
        done.append(step)
        if step < 12:
            return None
        log(run, "trained")
        write(run, score=score, step=12)
        return fsl.Ended(0)

    def _fails(self, run: Path) -> fsl.Ended:
        if self.fault == "diverges":
            write(run, failed="outer step 3: the loss is nan")
        return fsl.Ended(1, "no memory")

    def stop(self, runs: Sequence[Path]) -> None:
        self.stopped += runs


def write(run: Path, **found: object) -> None:
    told = {"metric": "accuracy", "interval": 0.01, **found}
    (run / "validated.json").write_text(json.dumps(told))


def score_of(parameters: dict) -> float:
    return round(1 - 9 * abs(parameters["outer.optimizer.lr"] - 0.05), 6)


def log(run: Path, what: str) -> None:
    with (run.parents[2] / "log.txt").open("a") as file:
        file.write(f"{what} {run.name}\n")


@pytest.fixture
def begin(
    toy_recipe: Path, toy_plugins: Loaded, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Searching]:
    monkeypatch.setattr("fsl_core.sweeping.schedule.POLLED_EVERY", 0.0)
    toy_recipe.write_text(toy_recipe.read_text() + SEARCH)

    metrics: dict[int, str] = {}  # to check a search once in a test is enough

    def metric(search: Search) -> str:
        if id(search) not in metrics:
            metrics[id(search)] = checked_metric(search)
        return metrics[id(search)]

    monkeypatch.setattr("fsl_core.sweeping.search.checked_metric", metric)

    @cache
    def read(*overrides: str) -> Search:
        return read_search(toy_recipe, toy_plugins.catalogue, overrides)

    def make(folder: Path, *overrides: str, searcher: fsl.Searcher | None = None) -> Searching:
        searching = Searching(read(*overrides), folder, toy_plugins, "cpu", 60.0)
        searching.searcher = searcher or Halving()
        return searching

    return make


def run(searching: Searching, launcher: Played) -> None:
    with searching.held():
        searching.advance(launcher, 1)
        work = Settings("cpu").work
        run_jobs(
            searching.queue,
            launcher,
            lambda job: work(job, launcher),
            more=lambda: searching.advance(launcher, 1),
        )


def found(searching: Searching) -> dict[str, object]:
    """Every trial with its outcome, and what was tested, as a run's directory shows it too."""
    return {
        one.study.name: (one.trials, one.best, one.test and one.test.directory.name)
        for one in searching.methods
    }


def logged(folder: Path) -> list[str]:
    return (folder.parent / "log.txt").read_text().splitlines()


def test_all_methods_get_the_same_budget_and_their_best_is_tested_once(begin, tmp_path: Path):
    searching = begin(tmp_path / "a" / "out")
    run(searching, Played(at_once=2))
    for one in searching.methods:
        assert [trial.number for trial in one.trials] == list(range(6))
        assert {trial.state for trial in one.trials} == {"complete", "pruned"}
        scores = {t.number: t.score for t in one.trials if t.score is not None}
        assert one.best.number == max(scores, key=lambda number: (scores[number], -number))
        assert one.test.state == "finished"
        for trial in (t for t in one.trials if t.state == "pruned"):
            assert trial.score is None
            assert max(trial.scores) < 12
            told = describe(one.jobs[trial.number].directory)
            assert told == f"pruned at step {max(trial.scores)}"
        assert f"best trial {one.best.number}: lr=" in told_of(one)
        assert trial_rows(one)[0]["best"]
        assert trial_rows(one)[0]["trial"] == one.best.number
    job: TrialJob = searching.queue[0]
    assert (job.title, one.test.title.split("trial")[0]) == ("wide, trial 0", "plain, test of ")
    assert job.ended.startswith("validation accuracy 0.")
    tested = [line for line in logged(tmp_path / "a" / "out") if line.startswith("tested")]
    assert len(tested) == 2
    # the methods' shared key has the same values while nothing but the number decides
    first = [[t.parameters["outer.optimizer.lr"] for t in m.trials[:3]] for m in searching.methods]
    assert first[0] == first[1]


@pytest.mark.parametrize(("at_once", "speed"), [(2, 1), (6, 2)])
def test_neither_jobs_nor_speed_decide_anything(begin, tmp_path: Path, at_once: int, speed: int):
    plain, other = begin(tmp_path / "a" / "out"), begin(tmp_path / "b" / "out")
    run(plain, Played(at_once=1))
    run(other, Played(at_once=at_once, speed=speed))
    assert found(other) == found(plain)


@pytest.mark.parametrize("seed", range(2))
def test_a_search_killed_at_any_time_ends_as_one_that_was_not(begin, tmp_path: Path, seed: int):
    """Killed until it is done, each time after a few polls; no trial is trained twice to its end."""
    plain, folder, draw = begin(tmp_path / "a" / "out"), tmp_path / "b" / "out", random.Random(seed)
    run(plain, Played())
    for kills in range(200):
        searching = begin(folder)
        try:
            run(searching, Played(draw.randint(1, 4), kills + 1, polls=draw.randint(5, 60)))
        except KeyboardInterrupt:
            continue
        break
    assert kills > 1
    assert found(searching) == found(plain)
    assert len(logged(folder)) == len(set(logged(folder)))
    assert {p.name for p in (folder / "runs").iterdir()} == {
        p.name for p in (tmp_path / "a" / "out" / "runs").iterdir()
    }


def test_a_search_killed_while_it_asks_asks_for_the_same(begin, tmp_path: Path, monkeypatch):
    plain, folder = begin(tmp_path / "a" / "out"), tmp_path / "b" / "out"
    run(plain, Played())
    from fsl_core.sweeping import search

    prepared = search.prepare
    for left in range(4):
        calls = iter(range(left + 1))
        monkeypatch.setattr(search, "prepare", lambda *a, calls=calls: (next(calls), prepared(*a)))
        with pytest.raises(StopIteration):
            run(begin(folder), Played())
    monkeypatch.setattr(search, "prepare", prepared)
    again = begin(folder)
    run(again, Played(at_once=4))
    assert found(again) == found(plain)


def test_a_trial_that_diverges_is_an_outcome(begin, tmp_path: Path):
    searching = begin(tmp_path / "a" / "out", searcher=RandomSearch())
    run(searching, Played(fault="diverges"))
    plain = searching.methods[1]
    assert [trial.state for trial in plain.trials].count("failed") == 1
    assert plain.test.state == "finished"
    assert any(row["state"] == "failed: outer step 3: the loss is nan" for row in trial_rows(plain))


def test_a_trial_that_fails_otherwise_is_tried_again(begin, tmp_path: Path):
    """It halts its method, whose later trials would depend on it; the other method goes on."""
    folder = tmp_path / "a" / "out"
    searching = begin(folder)
    run(searching, Played(fault="no memory"))
    wide, plain = searching.methods
    assert (wide.halted, plain.halted) == ("", "plain, trial 2: no memory")
    assert wide.test.state == "finished"
    assert (plain.test, plain.trials) == (None, [])
    assert "stopped by plain, trial 2: no memory. The same command goes on" in told_of(plain)
    again, unhurt = begin(folder), begin(tmp_path / "b" / "out")
    run(again, Played())
    run(unhurt, Played())
    assert found(again) == found(unhurt)


def test_the_same_parameters_share_a_run(begin, tmp_path: Path):
    class Twice(RandomSearch):
        def propose(self, study, trials):
            return {
                "adapter.distance": "cosine",
                "outer.optimizer.lr": 0.01 * (len(trials) % 4 + 1),
            }

    one = "search.methods={only: {space: {adapter.distance: [euclidean, cosine]}}}"
    folder = tmp_path / "a" / "out"
    for _ in range(2):
        searching = begin(folder, one, "search.trials=8", searcher=Twice())
        run(searching, Played())
        trials = searching.methods[0].trials
        assert [t.score for t in trials[:4]] == [t.score for t in trials[4:]]
        assert len(list((folder / "runs").glob("*/trial.json"))) == 4
        rows = {row["trial"]: row["state"] for row in trial_rows(searching.methods[0])}
        assert (rows[1], rows[5]) == ("complete", "complete (trial 1)")


def test_more_trials_go_on_and_another_search_is_refused(begin, tmp_path: Path):
    folder = tmp_path / "a" / "out"
    run(begin(folder, "search.trials=3"), Played())
    longer, whole = begin(folder), begin(tmp_path / "b" / "out")
    run(longer, Played())
    run(whole, Played())
    assert [m.trials for m in longer.methods] == [m.trials for m in whole.methods]
    for override, told in (
        ("outer.steps=13", r"methods\.wide\.recipe\.outer\.steps: 12 → 13"),
        ("search.batch=2", "batch: 3 → 2"),
        ("search.seed=1", "seed: 0 → 1"),
    ):
        with pytest.raises(
            RunError, match=rf"out: holds another search \({told}.*\. Another --out"
        ):
            run(begin(folder, override), Played())
    with longer.held(), pytest.raises(RunError, match="out: another process searches here. `fsl s"):
        run(begin(folder), Played())


@pytest.mark.parametrize(
    ("proposed", "told"),
    [
        ({"outer.optimizer.lr": 0.01}, "A value for each of outer.optimizer.lr, adapter.distance"),
        (
            {"outer.optimizer.lr": "x", "adapter.distance": "cosine"},
            r"outer\.optimizer\.lr: 'x'\. A",
        ),
        (
            {"outer.optimizer.lr": 0.01, "adapter.distance": "l1"},
            r"adapter\.distance: 'l1'\. A value",
        ),
    ],
)
def test_what_a_searcher_may_not_propose(begin, tmp_path: Path, proposed: dict, told: str):
    class Wrong(RandomSearch):
        def propose(self, study, trials):
            return proposed

    with pytest.raises(PluginError, match=f"searcher 'random': propose: .*{told}"):
        run(begin(tmp_path / "out", searcher=Wrong()), Played())


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("outer.validate_every=0", "-s outer.validate_every: 0. Above 0, because a search"),
        ("outer.steps=0", "-s outer.steps: 0. Above 0, because a search"),
        (
            "search.methods={a: {seed: null, space: {}}}",
            "seed is the same for all that is compared",
        ),
        (
            "search.methods={a: {adapter.distance: cosine}, b: {adapter.distance: cosine}}",
            "search.methods.b: the same as a. Methods that differ",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(begin, tmp_path: Path, override: str, told: str):
    with pytest.raises(RecipeError) as refused:
        begin(tmp_path / "out", override)
    assert told in str(refused.value)

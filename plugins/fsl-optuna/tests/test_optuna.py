"""What optuna proposes, ends early and writes, beside what the kit checks."""

from __future__ import annotations

from pathlib import Path

import pytest

import fsl_core as fsl

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from fsl_optuna import Optuna  # noqa: E402
from fsl_optuna.searcher import JOURNAL  # noqa: E402

STUDY = fsl.Study("maml", {"adapter.inner_lr": fsl.Range(0.001, 1.0, log=True)}, 0, 24, 40, "mse")


def complete(number: int, value: float, scores: dict[int, float]) -> fsl.Trial:
    score = scores[max(scores)]
    return fsl.Trial(number, {"adapter.inner_lr": value}, "complete", scores, score)


def error_of(value: float) -> float:
    return abs(value - 0.02)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_follow_scores_and_random_does_not(sampler: str):
    """After good trials around 0.02, the mean distance of proposals is far below that of random
    ones."""
    if sampler == "gp":
        pytest.importorskip("scipy", reason="scipy is not installed")
    drawn = [Optuna(sampler="random").propose(STUDY, trials_of(n)) for n in range(16)]
    known = [
        complete(n, found["adapter.inner_lr"], {40: error_of(found["adapter.inner_lr"])})
        for n, found in enumerate(drawn)
    ]
    follows = Optuna(sampler=sampler, startup=8)
    proposed = []
    for _ in range(3):
        value = follows.propose(STUDY, known)["adapter.inner_lr"]
        assert follows.propose(STUDY, known)["adapter.inner_lr"] == value
        proposed.append(error_of(value))
        known.append(complete(len(known), value, {40: error_of(value)}))
    errors = [error_of(found["adapter.inner_lr"]) for found in drawn]
    assert sum(proposed) / 3 < sum(errors) / len(errors) / 4


def trials_of(number: int) -> list[fsl.Trial]:
    return [complete(n, 0.1, {40: 0.08}) for n in range(number)]


@pytest.mark.parametrize(
    ("pruner", "scores", "ends"),
    [
        ("median", {10: 0.9}, True),  # an error: lower is better
        ("median", {10: 0.9, 20: 0.1}, False),  # the best so far counts
        ("median", {10: 0.1}, False),
        ("percentile", {10: 0.35}, True),  # the best quarter goes on
        ("none", {10: 0.9}, False),
    ],
)
def test_what_falls_behind_is_ended(pruner: str, scores: dict[int, float], ends: bool):
    known = [complete(n, 0.1, {10: n / 10, 20: n / 10}) for n in range(8)]
    assert Optuna(pruner=pruner).prune(STUDY, known, scores) is ends
    assert not Optuna(pruner=pruner, prune_after=9).prune(STUDY, known, scores)
    assert not Optuna(pruner=pruner, warmup=30).prune(STUDY, known, scores)


def test_optunas_own_tools_read_the_journal(tmp_path: Path):
    known = [complete(n, 0.1 * (n + 1), {10: 0.5, 40: 0.3 - n / 100}) for n in range(4)]
    known.append(fsl.Trial(4, {"adapter.inner_lr": 0.5}, "pruned", {10: 0.9}))
    known.append(fsl.Trial(5, {"adapter.inner_lr": 0.9}, "failed"))
    Optuna().record(tmp_path, STUDY, known[:3])
    with (tmp_path / JOURNAL).open("ab") as journal:  # killed in the middle of a line
        journal.write(b'{"op_code": 4, "wor')
    (tmp_path / f"{JOURNAL}.lock").touch()
    Optuna().record(tmp_path, STUDY, known)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    found = optuna.load_study(study_name="maml", storage=storage)
    assert [t.state.name for t in found.trials] == [*["COMPLETE"] * 4, "PRUNED", "FAIL"]
    assert found.direction.name == "MINIMIZE"
    assert found.best_trial.number == 3
    assert found.trials[0].intermediate_values == {10: 0.5, 40: 0.3}


def test_a_search_with_random_trials_alone_is_told(monkeypatch: pytest.MonkeyPatch):
    assert Optuna(startup=24).note(STUDY) == "all 24 trials are random: tpe begins after 24"
    assert not Optuna().note(STUDY)
    assert not Optuna(sampler="random", startup=99).note(STUDY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sampler: gp, without scipy\. pip install"):
        Optuna(sampler="gp")

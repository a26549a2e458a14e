"""The studies of feature re-use, of layer patterns and of opposite signs, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fsl_core as fsl
from benchmarks import opposite_signs, patterns, reuse


def test_the_page_of_reuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    small = {"SPREADS": (1.0,), "TEST_STEPS": (1,), "TASKS": (3, 200), "EPISODES": 2}
    for name, value in small.items():
        monkeypatch.setattr(reuse, name, value)
    reuse.main(["--seeds", "2", "--steps", "1", "--out", str(tmp_path)])
    text = (tmp_path / "reuse.md").read_text()
    assert text.count("| pwcca | svcca |") == 2
    assert "| 3 | " in text
    assert text.count("| anatome's |") == 1
    assert "nan" not in text
    assert (tmp_path / "reuse.svg").read_text().count("<svg") == 1


def test_fresh_tasks_are_others_around_the_same_centre():
    source = reuse.Setting(tasks=3).source()
    fresh = reuse.Setting(tasks=None).source()
    both = source.batch("train", range(3), 0), fresh.batch("train", range(3), 0)
    torch.testing.assert_close(both[0], both[1])
    later = fresh.batch("train", [reuse.FRESH], 0)
    assert later.id.item() == reuse.FRESH


def test_opposite_signs_are_two_tasks():
    batch = opposite_signs.OppositeSigns().batch("train", range(400), 0)
    signs = (batch.support.y / (2 * batch.support.x).sin())[:, 0, 0].round()
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.2


def test_the_rows_of_opposite_signs(monkeypatch: pytest.MonkeyPatch):
    small = {"SEEDS": 2, "STEPS": 1, "TASKS": 2, "EPISODES": 2, "RATES": (0.1,)}
    for name, value in small.items():
        monkeypatch.setattr(opposite_signs, name, value)
    rows = opposite_signs.rows(1)
    assert [row.split(" | ")[1] for row in rows] == list(opposite_signs.METHODS)
    assert "±" not in rows[0]
    assert all("±" in row for row in rows[1:])


def test_a_factor_or_a_head_of_zero_starts_from_the_function_zero():
    source = opposite_signs.OppositeSigns()
    (episode,) = source.batch("test", [0], 0).unbatch()
    for name in ("maml, head from 0", "wormhole, factor from 0"):
        backbone = opposite_signs.Mlp(source.task, hidden=[4])
        learner = fsl.Learner(backbone, opposite_signs.METHODS[name](source.task, backbone)).eval()
        first = learner.trajectory(episode)[0](episode.query.x)
        np.testing.assert_array_equal(first.detach().numpy(), 0)


def test_patterns_are_timed_in_turn():
    task = fsl.TaskShape("classification", 2, 1, 1, (1, 16, 16), 2)
    found = patterns.seconds(task, episodes=1)
    assert list(found) == list(patterns.PATTERNS)
    assert all(len(times) == 1 and times[0] > 0 for times in found.values())

"""The kit's contract of searchers: the built-in one keeps it, and faults are named."""

from __future__ import annotations

import random

import pytest

import fsl_core as fsl
from fsl_core.builtin.random_search import RandomSearch
from fsl_core.testing import SearcherContract
from fsl_core.testing.searchers import SPACE


class TestRandom(SearcherContract):
    def make(self):
        return RandomSearch()


class Wrong(RandomSearch):
    def __init__(self, fault: str):
        self.fault, self.asked = fault, 0

    def propose(self, study, trials):
        self.asked += 1
        proposed = dict(super().propose(study, trials))
        if self.fault == "outside":
            proposed["adapter.steps"] = 7
        elif self.fault == "key":
            del proposed["adapter.steps"]
        elif self.fault == "memory":
            proposed["adapter.temperature"] = self.asked / 100
        elif self.fault == "changes" and trials:
            trials.append(trials[-1])
        elif self.fault == "global":
            random.random()
        elif self.fault == "seed":
            proposed = {
                key: among.low if isinstance(among, fsl.Range) else among.values[0]
                for key, among in SPACE.items()
            }
        return proposed

    def record(self, folder, study, trials):
        if self.fault == "record":
            (folder / "search").mkdir()


@pytest.mark.parametrize(
    ("fault", "check", "told"),
    [
        ("outside", "test_proposals_lie_in_the_space", "'adapter.steps': 7"),
        ("key", "test_proposals_lie_in_the_space", "A value for each key"),
        ("memory", "test_answers_follow_from_arguments_alone", "asked for again"),
        ("changes", "test_answers_follow_from_arguments_alone", "has changed the trials"),
        ("global", "test_answers_follow_from_arguments_alone", "moved a global random state"),
        ("seed", "test_another_seed_proposes_another_trial", "for every seed"),
        ("record", "test_records_are_written_again", "File exists"),
    ],
)
def test_planted_faults_are_found(fault: str, check: str, told: str, tmp_path):
    class Kit(SearcherContract):
        def make(self):
            return Wrong(fault)

    arguments = {"test_proposals_lie_in_the_space": ["accuracy"]}
    arguments["test_records_are_written_again"] = [tmp_path]
    with pytest.raises((AssertionError, FileExistsError), match=told):
        getattr(Kit(), check)(*arguments.get(check, []))


def test_a_searcher_without_its_method_says_which():
    study = fsl.Study("method", SPACE, 0, 4, 10, "accuracy")
    with pytest.raises(NotImplementedError, match=r"Empty\.propose: not written"):
        type("Empty", (fsl.Searcher,), {"name": "empty"})().propose(study, [])


@pytest.mark.parametrize(
    ("among", "value", "fitted"),
    [
        (fsl.Range(0.0, 1.0), 0.123456789, 0.123457),
        (fsl.Range(0.0, 1.0), 2.0, 1.0),
        (fsl.Range(0.0, 1.0, step=0.3), 1.0, 0.9),
        (fsl.Range(1, 9, step=4, whole=True), 6.9, 5),
        (fsl.Range(1, 9, whole=True), 8.6, 9),
    ],
)
def test_numbers_are_rounded_into_their_range(among, value, fitted):
    assert among.fitted(value) == fitted
    assert among.fitted(value) in among
    assert isinstance(among.fitted(value), int) == among.whole

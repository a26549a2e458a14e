"""Timing, ratios and the check that everybody computed the same."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.race import (
    Disagreement,
    check_agreement,
    difference,
    exponent,
    fastest,
    race,
    ratio,
)


def test_contenders_take_turns_and_each_round_starts_with_another():
    calls: list[str] = []
    seconds = race(
        {name: lambda name=name: calls.append(name) for name in "abc"},
        budget=0,
        rounds=(4, 4),
        block=1e-9,
    )
    assert {name: len(s) for name, s in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(calls[-12:]) == "abcbcacababc"


def test_a_round_repeats_short_work_until_the_clock_can_see_it():
    calls = []
    race({"short": lambda: calls.append(1)}, budget=0, rounds=(2, 2), block=0.001)
    assert len(calls) > 100


def test_rounds_go_on_for_the_budget_and_no_longer_than_allowed():
    assert len(race({"a": lambda: None}, budget=60, rounds=(1, 7), block=1e-9)["a"]) == 7


def test_ratios_are_paired_by_round():
    """A disturbance that doubles both times of a round changes no ratio."""
    own, other = [1.0, 2.0, 1.0, 4.0], [3.0, 6.0, 3.0, 12.0]
    assert tuple(vars(ratio(other, own)).values()) == (3.0, 3.0, 3.0)


def test_the_interval_of_a_ratio_holds_the_median_and_grows_with_the_spread():
    own = [1.0] * 21
    narrow, wide = (
        ratio([2 + spread * (i - 10) / 10 for i in range(21)], own) for spread in (0.1, 1.0)
    )
    assert narrow.low < narrow.value < narrow.high
    assert narrow.value == pytest.approx(2)
    assert wide.high - wide.low == pytest.approx(10 * (narrow.high - narrow.low))


def test_fastest_goes_by_the_median():
    assert fastest({"steady": [2.0, 2.0, 2.0], "lucky once": [0.1, 3.0, 3.0]}) == "steady"


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_exponent_is_the_slope_of_a_power_law(power: float):
    assert exponent([1, 2, 4, 8], [5 * n**power for n in (1, 2, 4, 8)]) == pytest.approx(
        power, abs=1e-12
    )


def test_difference_is_in_units_of_the_largest_element():
    reference = [torch.tensor([4.0, 0.0]), torch.tensor([1.0])]
    assert difference([torch.tensor([4.0, 0.4]), torch.tensor([1.0])], reference) == pytest.approx(
        0.1
    )


@pytest.mark.parametrize("broken", [torch.tensor([float("nan")]), torch.ones(2)])
def test_difference_of_nan_or_another_shape_is_infinite(broken: torch.Tensor):
    assert difference([broken], [torch.ones(1)]) == math.inf


def test_whoever_disagrees_is_named():
    ones = [torch.ones(2)]
    with pytest.raises(
        Disagreement,
        match=r"meta-gradients differ from those of ours: b by 5\.0e-01\. At most 1e-03",
    ):
        check_agreement({"ours": ones, "a": ones, "b": [torch.full((2,), 1.5)]}, 1e-3)

"""Rows, settings and baselines of a sweep, and combinations that the parts refuse, before anything
runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsl_core.config.matrix import read_matrix
from fsl_core.errors import DataError, RecipeError
from fsl_core.hooks.loader import Loaded
from fsl_core.sweeping.plan import Plan, plan_sweep


@pytest.fixture
def plan(toy_recipe: Path, toy_plugins: Loaded):
    base = toy_recipe.read_text()

    def of(*lines: str, overrides: tuple[str, ...] = ()) -> Plan:
        toy_recipe.write_text(base + "matrix:\n" + "".join(f"  {line}\n" for line in lines))
        return plan_sweep(read_matrix(toy_recipe, toy_plugins.catalogue, overrides))

    return of


ADAPTERS = "adapter: [nearest-centroid, explodes]"


def test_a_row_holds_its_seeds(plan):
    planned = plan(ADAPTERS, "seed: [0, 1]")
    assert [planned.row_title(row) for row in planned.rows] == ["nearest-centroid", "explodes"]
    assert [[cell.labels["seed"] for cell in row.cells] for row in planned.rows] == [
        ["0", "1"],
        ["0", "1"],
    ]
    assert [(row.setting, row.baseline) for row in planned.rows] == [(0, 0), (0, 0)]


def test_rows_on_other_episodes_are_another_setting(plan):
    planned = plan("evaluate.n_shot: [1, 5]", ADAPTERS, "baseline: {adapter: explodes}")
    assert [(row.setting, row.baseline) for row in planned.rows] == [(0, 1), (0, 1), (1, 3), (1, 3)]
    assert planned.varying == ("adapter",)
    assert [planned.setting_title(setting) for setting in (0, 1)] == ["n_shot 1", "n_shot 5"]


def test_another_training_is_no_other_setting(plan):
    planned = plan(
        "episodes.n_shot: [1, 5]",
        "evaluate.checkpoint: [best, last]",
        overrides=("evaluate.n_shot=3",),
    )
    assert {row.setting for row in planned.rows} == {0}
    assert planned.row_title(planned.rows[0]) == "n_shot 1, best"


@pytest.mark.parametrize(
    ("baseline", "number"),
    [
        ("{outer.steps: 3}", 2),
        ("{adapter: [nearest-centroid, explodes], outer.steps: 3}", 2),
        ("{adapter: explodes, outer.steps: 4}", 0),
    ],
)
def test_a_baseline_is_one_row(plan, baseline: str, number: int):
    lines = (ADAPTERS, "outer.steps: [3, 4]", "exclude: [{adapter: explodes, outer.steps: 4}]")
    with pytest.raises(
        RecipeError,
        match=rf"toy.yaml:18: matrix.baseline: selects {number} rows of those judged on the same",
    ):
        plan(*lines, f"baseline: {baseline}")


def test_combinations_that_the_parts_refuse(plan):
    """Each is right by itself: `explodes` has a head of fixed size, and `picky` wants even
    numbers."""
    with pytest.raises(RecipeError) as caught:
        plan(
            "adapter: [nearest-centroid, explodes, {name: picky, even: 3}]",
            "evaluate.n_way: [3, 4]",
        )
    assert len(caught.value.faults) == 2
    assert (
        "adapter: even: 3. A multiple of two [picky, n_way 3; and 1 more]" in caught.value.faults[0]
    )
    assert (
        "evaluate.n_way: adapter.head.weight of adapter 'explodes' has a size fixed by n_way 3"
        in caught.value.faults[1]
    )
    assert caught.value.faults[1].endswith("such as nearest-centroid [explodes, n_way 4]")


ESTIMATES = "outer.hypergradient: [unrolled, first-order]"
NO_PROBLEM = "adapter 'nearest-centroid' has no inner problem"


def test_a_hypergradient_that_cannot_drive_an_adapter_is_left_out(plan):
    planned = plan("adapter: [nearest-centroid, steps]", ESTIMATES, "seed: [0, 1]")
    assert [planned.row_title(row) for row in planned.rows] == [
        "nearest-centroid, unrolled",
        "steps, unrolled",
        "steps, first-order",
    ]
    assert [len(row.cells) for row in planned.rows] == [2, 2, 2]
    assert planned.refused == (("nearest-centroid, first-order", NO_PROBLEM),)


def test_one_that_is_excluded_is_not_told(plan):
    exclude = "exclude: [{adapter: nearest-centroid, outer.hypergradient: first-order}]"
    planned = plan("adapter: [nearest-centroid, steps]", ESTIMATES, exclude)
    assert len(planned.rows) == 3
    assert planned.refused == ()


def test_pairs_that_all_are_refused_are_a_fault(plan):
    where = r"toy.yaml:\d+: outer.hypergradient: first-order: "
    with pytest.raises(RecipeError, match=where + NO_PROBLEM):
        plan("adapter: [nearest-centroid]", "outer.hypergradient: [first-order]", "seed: [0, 1]")


def test_a_baseline_that_is_refused(plan):
    lines = ("adapter: [nearest-centroid, steps]", ESTIMATES)
    wanted = "baseline: {adapter: nearest-centroid, outer.hypergradient: first-order}"
    with pytest.raises(RecipeError, match=r"selects 0 rows .* no excluded or refused combination"):
        plan(*lines, wanted)


def test_data_that_is_absent_is_named_once(plan):
    folder = "episodes: [{name: image-folder, root: nowhere, n_way: 2, n_shot: 1, n_query: 1, image_size: 16}]"
    with pytest.raises(DataError) as caught:
        plan(folder, "seed: [0, 1]", overrides=("backbone={name: conv4, channels: 4}",))
    assert len(str(caught.value).splitlines()) == 1
    assert "root nowhere does not exist" in str(caught.value)

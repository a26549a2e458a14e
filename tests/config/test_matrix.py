"""The `matrix:` section: what its combinations are, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsl_core.config.matrix import Matrix, read_matrix
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded


@pytest.fixture
def read(toy_recipe: Path, toy_plugins: Loaded):
    """The matrix of the toy recipe with these lines below `matrix:`, which is line 13."""
    base = toy_recipe.read_text()

    def with_matrix(*lines: str, overrides: tuple[str, ...] = ()) -> Matrix:
        toy_recipe.write_text(base + "matrix:\n" + "".join(f"  {line}\n" for line in lines))
        return read_matrix(toy_recipe, toy_plugins.catalogue, overrides)

    return with_matrix


def labels(matrix: Matrix) -> list[tuple[str, ...]]:
    return [tuple(cell.labels.values()) for cell in matrix.cells]


def test_every_combination_in_order(read):
    matrix = read(
        "adapter: [nearest-centroid, {name: explodes, at_progress: 2}]",
        "outer.weighting: [uniform]",
        "seed: [0, 1]",
    )
    assert labels(matrix) == [
        (a, "uniform", s) for a in ("nearest-centroid", "explodes") for s in ("0", "1")
    ]
    assert [cell.recipe.sections.seed for cell in matrix.cells] == [0, 1, 0, 1]
    assert matrix.cells[3].title == "explodes, uniform, seed 1"
    assert matrix.cells[3].directory_name == f"explodes-uniform-seed-1-{matrix.cells[3].digest}"


def test_a_section_is_replaced_and_not_merged(read):
    matrix = read(
        "adapter: [{name: nearest-centroid, temperature: 3.0}, explodes]",
        overrides=("adapter.temperature=2.0",),
    )
    assert matrix.cells[0].recipe.sections.adapter.temperature == 3.0
    assert matrix.cells[1].recipe.sections.adapter.model_dump() == {
        "name": "explodes",
        "at_progress": 0.5,
    }


def test_a_base_without_the_section_is_enough(read, toy_recipe: Path, toy_plugins: Loaded):
    read("adapter: [nearest-centroid]")
    toy_recipe.write_text(toy_recipe.read_text().replace("adapter: {name: nearest-centroid}\n", ""))
    assert labels(read_matrix(toy_recipe, toy_plugins.catalogue)) == [("nearest-centroid",)]


def test_components_of_one_name_are_told_apart_by_their_options(read):
    matrix = read("adapter: [{name: nearest-centroid, temperature: 3}, nearest-centroid, explodes]")
    assert labels(matrix) == [
        ("nearest-centroid temperature=3",),
        ("nearest-centroid",),
        ("explodes",),
    ]


def test_keys_that_change_together_share_an_axis(read):
    matrix = read(
        "budget: {short: {outer.steps: 3, outer.optimizer.lr: 0.1}, long: {outer.steps: 30}}",
        "outer.meta_batch_size: [2, 3]",
    )
    assert labels(matrix) == [(b, m) for b in ("short", "long") for m in ("2", "3")]
    outers = [cell.recipe.sections.outer for cell in matrix.cells]
    assert [(o.steps, o.optimizer.lr, o.meta_batch_size) for o in outers] == [
        (3, 0.1, 2),
        (3, 0.1, 3),
        (30, 0.01, 2),
        (30, 0.01, 3),
    ]
    assert matrix.cells[0].title == "short, meta_batch_size 2"


def test_a_section_goes_before_its_keys(read):
    matrix = read(
        "adapter.temperature: [2.0]", "adapter: [{name: nearest-centroid, temperature: 9}]"
    )
    assert matrix.cells[0].recipe.sections.adapter.temperature == 2.0


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (
            "{adapter: explodes, seed: 1}",
            [("nearest-centroid", "0"), ("nearest-centroid", "1"), ("explodes", "0")],
        ),
        ("{seed: [1, 2]}", [("nearest-centroid", "0"), ("explodes", "0")]),
    ],
)
def test_excluded_combinations(read, selection: str, left: list[tuple[str, ...]]):
    assert (
        labels(
            read(
                "adapter: [nearest-centroid, explodes]",
                "seed: [0, 1, 2]",
                f"exclude: [{selection}, {{seed: 2}}]",
            )
        )
        == left
    )


def test_a_label_goes_before_the_name_of_a_component(read):
    weightings = "outer.weighting: [uniform, {name: uniform, reduction: sum}]"
    assert labels(read(weightings, "exclude: [{outer.weighting: uniform}]")) == [
        ("uniform reduction=sum",)
    ]
    assert labels(
        read(weightings, "exclude: [{outer.weighting: {name: uniform, reduction: sum}}]")
    ) == [("uniform",)]


def test_the_digest_is_of_all_that_a_run_depends_on(read):
    first, second = read("seed: [0, 1]").cells
    assert first.digest != second.digest
    assert [cell.digest for cell in read("seed: [1, 0, 5]").cells[:2]] == [
        second.digest,
        first.digest,
    ]
    assert read("seed: [0]", overrides=("outer.steps=13",)).cells[0].digest != first.digest
    assert read("seed: [0]", overrides=("requires=[fsl-core]",)).cells[0].digest == first.digest


AXES = ("adapter: [nearest-centroid, explodes]", "seed: [0, 1]")


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (
            ("adapter: explodes",),
            [
                'toy.yaml:15: matrix.adapter: found "explodes". A list of values for adapter, or named mappings'
            ],
        ),
        (("seed: []",), ["toy.yaml:15: matrix.seed: found []. A list of values for seed, or "]),
        (
            ("budget: {short: 3}",),
            ['toy.yaml:15: matrix.budget: found {"short": 3}. A list of values for budget, or '],
        ),
        (
            ("exclude: [{seed: 0}]",),
            [
                "toy.yaml:14: matrix: found {",
            ],
        ),
        (("seed: [0, 0]",), ["toy.yaml:15: matrix.seed: 0 is there twice. Every value once"]),
        (
            ("seed: [0]", "a: {b: {seed: 1}}"),
            ["toy.yaml:16: matrix.a: seed is set by seed too. One axis for each key"],
        ),
        (
            (*AXES, "exclude: {seed: 0}"),
            ['toy.yaml:17: matrix.exclude: found {"seed": 0}. A list of mappings'],
        ),
        (
            (*AXES, "exclude: [explodes]"),
            ['toy.yaml:17: matrix.exclude.0: found "explodes". A mapping from axes to values'],
        ),
        (
            (*AXES, "exclude: [{adaptr: explodes}]"),
            ["toy.yaml:17: matrix.exclude.0.adaptr: not an axis of this matrix. Did you mean"],
        ),
        (
            (*AXES, "exclude: [{seed: 7}]"),
            ["toy.yaml:17: matrix.exclude.0.seed: seed has no value 7. One of 0, 1"],
        ),
        (
            (*AXES, "exclude: [{seed: [0, 1]}]"),
            ["toy.yaml:17: matrix.exclude: leaves no combination. At least one"],
        ),
        (
            (*AXES, "baseline: explodes"),
            ['toy.yaml:17: matrix.baseline: found "explodes". A mapping from axes to values'],
        ),
        (
            (*AXES, "baseline: {adapter: maml}"),
            ["toy.yaml:17: matrix.baseline.adapter: adapter has no value maml. One of nearest-"],
        ),
        (
            ("adapter: [nearest-centriod, {name: explodes, at_progres: 1}]", "seed: [0, 1, -3]"),
            [
                "toy.yaml:15: adapter.name: adapter 'nearest-centriod': no installed plugin offers it. "
                "Did you mean 'nearest-centroid'? "
                "[nearest-centriod, seed 0; and 2 more]",
                "toy.yaml:15: adapter.at_progres: adapter 'explodes' has no such option. Did you mean 'at_progress'? "
                "[explodes, seed 0; and 2 more]",
                "toy.yaml:16: seed: found -3. Expected greater than or equal to 0 [nearest-centriod, seed -3; and 1 more]",
            ],
        ),
        (
            ("outer.stepps: [1, 2]",),
            [
                "toy.yaml:15: outer.stepps: section 'outer' has no such option. Did you mean 'steps'?"
            ],
        ),
        (
            ("seed.x: [1, 2]",),
            ["toy.yaml:15: seed.x: seed is a number. A key path through mappings"],
        ),
        (
            ("seed: [0, 1]", "outer.weighting: [uniform, {name: uniform, reduction: mean}]"),
            [
                "toy.yaml:14: matrix: seed 0, uniform and seed 0, uniform reduction=mean are the same run. Leave one out"
            ],
        ),
    ],
)
def test_what_is_refused(read, lines: tuple[str, ...], faults: list[str]):
    with pytest.raises(RecipeError) as caught:
        read(*lines)
    assert len(caught.value.faults) == len(faults), caught.value.faults
    for fault, expected in zip(caught.value.faults, faults, strict=True):
        assert expected in fault


def test_a_matrix_has_no_expected_figures(read):
    with pytest.raises(
        RecipeError, match="-s expect: figures of one run, and a matrix is of many. One of the two"
    ):
        read("seed: [0]", overrides=("expect={accuracy: {value: 1, tolerance: 0}}",))


def test_a_sweep_needs_a_matrix(toy_recipe: Path, toy_plugins: Loaded):
    with pytest.raises(
        RecipeError,
        match=r"toy.yaml: no `matrix:`, so there is nothing to sweep. matrix: {adapter: ",
    ):
        read_matrix(toy_recipe, toy_plugins.catalogue)


def test_one_run_takes_no_matrix(read, toy_recipe: Path, toy_plugins: Loaded):
    read("seed: [0, 1]")
    message = "toy.yaml:14: matrix: a matrix of many runs. `fsl sweep .*toy.yaml` runs them all, `-s matrix=null` leaves it out"
    with pytest.raises(RecipeError, match=message):
        read_recipe(toy_recipe, toy_plugins.catalogue)
    assert read_recipe(toy_recipe, toy_plugins.catalogue, ["matrix=null"]).sections.seed == 0

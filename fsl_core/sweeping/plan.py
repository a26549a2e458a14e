"""What a sweep will run: which rows may be compared, and whether every combination is legal."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass

from fsl_core.assembly.experiment import Experiment, build_experiment, build_optimizer, check_data
from fsl_core.assembly.parts import section_at
from fsl_core.config.matrix import SEED, Cell, FaultsOfCells, Matrix, title
from fsl_core.data.work import each
from fsl_core.errors import DataError, RecipeError, UnfitError

LOCATIONS = ("root", "path", "file")


@dataclass(frozen=True)
class Row:
    """A line of the table: one combination over its seeds.

    setting: rows of one setting are judged on the same test episodes.
    data: the data set of these episodes; several settings may share it.
    baseline: position in the plan of the row that this one is compared with.
    """

    labels: dict[str, str]
    cells: tuple[Cell, ...]
    setting: int
    data: str
    baseline: int


@dataclass(frozen=True)
class Plan:
    """All rows of a sweep.

    varying: axes that tell rows of one setting apart.
    setting_axes: axes that tell settings apart.
    refused: (title, reason) of rows whose hypergradient cannot drive their adapter. They are not
        run.
    """

    matrix: Matrix
    rows: tuple[Row, ...]
    varying: tuple[str, ...]
    setting_axes: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells]

    def row_title(self, row: Row) -> str:
        return ", ".join(title(axis, row.labels[axis]) for axis in self.varying) or "the only row"

    def setting_title(self, setting: int) -> str:
        labels = next(row.labels for row in self.rows if row.setting == setting)
        return ", ".join(title(axis, labels[axis]) for axis in self.setting_axes)


def plan_sweep(matrix: Matrix, with_data: bool = True) -> Plan:
    """Build every combination once and put them in rows.

    with_data: check as well that the data can give the episodes.
    Raises RecipeError or DataError with every reason to refuse a combination. A hypergradient that
    cannot drive an adapter is no such reason, as long as one row is left.
    """
    found, refused = _build_all(matrix, with_data)
    numbers = {key: n for n, key in enumerate(dict.fromkeys(found.values()))}
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in matrix.cells:
        if cell.digest in found:
            groups.setdefault(tuple(_labels(cell).values()), []).append(cell)
    cells = [tuple(group) for group in groups.values()]
    settings = [numbers[found[group[0].digest]] for group in groups.values()]
    labels = [_labels(own[0]) for own in cells]
    baselines = _baselines(matrix, labels, settings)
    rows = [
        Row(told, own, setting, _data_set(own[0]), baselines[setting])
        for told, own, setting in zip(labels, cells, settings, strict=True)
    ]
    varying, telling = _axes_that_tell(matrix, rows)
    return Plan(matrix, tuple(rows), varying, telling, tuple(refused.items()))


def _labels(cell: Cell) -> dict[str, str]:
    """What tells a cell's row: all its labels but that of the seed."""
    return {axis: label for axis, label in cell.labels.items() if axis != SEED}


def _build_all(matrix: Matrix, with_data: bool) -> tuple[dict[str, Hashable], dict[str, str]]:
    """The setting of each cell by its digest, and why rows are not run by their title.

    Cells of one setting have the same test episodes.
    """
    count = len(matrix.cells)
    refused, unfit, absent = FaultsOfCells(count), FaultsOfCells(count), FaultsOfCells(count)
    looked_at: set[Hashable] = set()
    settings: dict[str, Hashable] = {}
    reasons: dict[str, str] = {}
    for cell in each(matrix.cells, "checking combinations"):
        try:
            experiment = build_experiment(cell.recipe)
            build_optimizer(cell.recipe, experiment)
        except UnfitError as error:
            unfit.add(error.faults, cell.title)
            reasons[", ".join(title(*item) for item in _labels(cell).items())] = error.reason
            continue
        except RecipeError as error:
            refused.add(error.faults, cell.title)
            continue
        setting = settings[cell.digest] = _setting(cell, experiment)
        data = (setting, experiment.source.task, cell.recipe.sections.outer.validate_every > 0)
        if with_data and data not in looked_at:
            looked_at.add(data)
            try:
                check_data(experiment)
            except DataError as error:
                absent.add(str(error).splitlines(), cell.title)
    refused.raise_any()
    if not settings:
        unfit.raise_any()
    try:
        absent.raise_any()
    except RecipeError as error:
        raise DataError(str(error)) from error
    return settings, reasons


def _setting(cell: Cell, experiment: Experiment) -> Hashable:
    episodes = cell.recipe.resolved()["episodes"]
    sizes = ("n_way", "n_shot", "n_query")  # test_task says what these come to
    pool = {key: value for key, value in episodes.items() if key not in sizes}
    judged = cell.recipe.sections.evaluate
    return json.dumps(pool, sort_keys=True), experiment.test_task, judged.seed, judged.episodes


def _data_set(cell: Cell) -> str:
    """Which data the episodes are of: their source, and the folder or file that it reads.

    Its other options, such as a size of pictures, make no other data set of them.
    """
    chosen = cell.recipe.chosen
    return ", ".join(
        " ".join(str(value) for key in ("name", *LOCATIONS) if (value := getattr(part, key, "")))
        for path in chosen
        if path[0] == "episodes" and (part := section_at(cell.recipe, path))
    )


def _baselines(matrix: Matrix, labels: list[dict[str, str]], settings: list[int]) -> dict[int, int]:
    """The baseline's row of each setting: the one that `baseline:` selects, or the first."""
    found: dict[int, int] = {}
    for setting in dict.fromkeys(settings):
        rows = [i for i, own in enumerate(settings) if own == setting]
        every_axis = matrix.cells[0].labels  # the seed's as well, which rows do not have
        selected = [i for i in rows if matrix.selects(matrix.baseline, {**every_axis, **labels[i]})]
        if matrix.baseline and len(selected) != 1:
            where = matrix.document.where(("matrix", "baseline"))
            told = ", ".join(title(*item) for item in labels[rows[0]].items())
            raise RecipeError(
                f"{where}: selects {len(selected)} rows of those judged on the same episodes as "
                f"({told}). One value on each axis, and no excluded or refused combination"
            )
        found[setting] = selected[0] if matrix.baseline else rows[0]
    return found


def _axes_that_tell(matrix: Matrix, rows: list[Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Axes that differ within a setting, and those that differ between settings alone."""
    axes = [axis.name for axis in matrix.axes if axis.name != SEED]
    within, between = [], []
    for axis in axes:
        labels: dict[int, set[str]] = {}  # that rows of a setting have on this axis
        for row in rows:
            labels.setdefault(row.setting, set()).add(row.labels[axis])
        if any(len(found) > 1 for found in labels.values()):
            within.append(axis)
        elif len({frozenset(found) for found in labels.values()}) > 1:
            between.append(axis)
    return tuple(within or axes), tuple(between)

"""Figures with names from elsewhere: nothing in a name is mathematics, an order, or too long."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fsl_core.reporting import figures
from fsl_core.reporting.figures import bins_of, label

NAMES = [r"$\frac{$", "a" * 300, "$x^2$ & <b>", "\x1b[2J\n\x00", "模型", "größe_1", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is(name: str):
    values = np.random.default_rng(0).random((2, 2))
    shown = label(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert len(label(name)) <= figures.LABEL
    for drawn in (
        figures.scatter(values[0], values[1], (name, "other")),
        figures.heat_map(values, [name, "other"], ["other", name], True),
        figures.critical_difference([name, "other"], np.array([1.0, 2.0]), [(0, 1)], 1.2),
    ):
        assert f">{shown}" in drawn or f"{shown}<" in drawn
        assert not set(drawn) & set("\x1b\x00")


def test_numbers_of_an_axis_are_plain():
    """Powers of ten and whole numbers are written as they are."""
    for values, log, shown in (
        ([0.001, 0.3], True, {"0.001", "0.01", "0.1"}),
        ([0.02, 0.06], True, {"0.02", "0.05"}),
        ([1, 3], False, {"1", "2", "3"}),
        (["group", "none"], False, {"group", "none"}),
    ):
        drawn = figures.over(values, [0.5, 0.75], "key", "score", log)
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
        assert shown <= set(texts)
        assert "mathdefault" not in drawn
    assert not {"0.5", "1.5"} & set(
        re.findall(r">([^<]*)</text>", figures.trials([0, 1, 2], [10, 30, 20], "score", True))
    )


@pytest.mark.parametrize(
    ("scale", "start"), [(1, 0), (1e-5, 0), (1e-5, 0.693), (2e6, 1e7), (-3, 0), (1e-3, -12.34)]
)
def test_there_is_room_for_all_numbers(scale: float, start: float):
    values = [start + scale * share for share in (0.0, 0.3, 1.0)]
    records = [{"step": 10**6 * i, "loss": value} for i, value in enumerate(values)]
    figure = figures.draw_curve(records, [], "loss")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    taken = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert min(taken.x0, taken.y0, width - taken.x1, height - taken.y1) >= 0


def test_figures_do_not_depend_on_the_settings_of_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.histogram([0.1, 0.2, 0.4], "accuracy")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("queries", "least", "most"), [(75, 20, 75), (75, 70, 75), (25, 0, 25)])
def test_bins_of_accuracies_hold_as_many_possible_values_each(queries: int, least: int, most: int):
    """Whatever the step of an accuracy, no bar is high because more values fall into its bin."""
    right = np.arange(least, most + 1)
    edges = bins_of((right / queries).astype(np.float32).tolist(), "accuracy")
    assert len(edges) - 1 <= 30
    held, _ = np.histogram(right / queries, edges)
    assert len({*held[:-1]}) == 1
    assert 0 < held[-1] <= held[0]
    assert held.sum() == len(right)


def test_bins_of_what_has_no_steps():
    scores = np.random.default_rng(0).random(200).tolist()
    assert len(bins_of(scores, "mse")) == 31
    assert len(bins_of(scores, "accuracy")) == 31
    assert bins_of([1.0, 1.0], "accuracy") == pytest.approx([0.975, 1.025])


def test_chance_is_drawn_where_it_is_known():
    training = [{"step": i, "accuracy": 0.5} for i in range(3)]
    for draw in (
        lambda chance: figures.histogram([0.2, 0.4], "accuracy", chance),
        lambda chance: figures.inner_steps([0.2, 0.4], "accuracy", chance),
        lambda chance: figures.curve(training, [], "accuracy", chance),
        lambda chance: figures.curves({"a": ([0, 1], [0.2, 0.4])}, "accuracy", chance),
    ):
        assert ">chance 0.33</text>" in draw(1 / 3)
        assert "chance" not in draw(None)

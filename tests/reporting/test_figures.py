"""Figures with names from elsewhere: nothing in a name is mathematics, an order, or too long."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fsl_core.reporting import figures
from fsl_core.reporting.figures import label

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
        re.findall(r">([^<]*)</text>", figures.trials([0, 1, 2], [1, 3, 2], "score", True))
    )


def test_figures_do_not_depend_on_the_settings_of_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.histogram([0.1, 0.2, 0.4], "accuracy")
    assert dict(matplotlib.rcParams) == before

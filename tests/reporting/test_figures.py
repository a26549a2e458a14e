"""Figures with names from elsewhere: nothing in a name is mathematics, an order, or too long."""

from __future__ import annotations

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


def test_figures_do_not_depend_on_the_settings_of_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.histogram([0.1, 0.2, 0.4], "accuracy")
    assert dict(matplotlib.rcParams) == before

"""The PNG files that trackers show: which there are, and what is drawn in them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fsl_core as fsl

GLYPHS = {
    "episodes": {"name": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 4},
    "backbone": {"name": "conv4", "channels": 4},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"meta_batch_size": 1, "steps": 2, "validate_every": 1, "validate_episodes": 2},
    "execution": {"mode": "loop", "workers": 1},
    "evaluate": {"episodes": 4},
}
SINUSOID = {
    "episodes": {"name": "sinusoid", "n_shot": 5},
    "backbone": {"name": "mlp", "hidden": [4]},
    "adapter": {"name": "linear-probe"},
}


class Watching:
    """A plugin's observer that keeps what it is told at the end."""

    @fsl.hookimpl
    def fsl_run_finished(self, run):
        self.view, self.figures = run, fsl.run_figures(run)


@pytest.fixture
def figures_of(monkeypatch: pytest.MonkeyPatch):
    def run(recipe: dict, out: Path | None) -> dict[str, bytes]:
        from fsl_core import api

        watching, load = Watching(), api.load

        def load_with(**options):
            loaded = load(entry_points=False, **options)
            loaded.observers.add(watching)
            return loaded

        monkeypatch.setattr(api, "load", load_with)
        if out is not None:  # what observers of plugins find: they are told after the report
            monkeypatch.setattr(api, "ReportWriter", object)
        fsl.run(recipe, out=out, device="cpu", progress=False)
        return watching.figures

    return run


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_run_on_pictures_has_all_of_them(figures_of, tmp_path: Path):
    found = figures_of(GLYPHS, tmp_path / "run")
    assert list(found) == ["loss", "accuracy", "episodes", "confusion", "worst-episodes"]
    for png in found.values():
        assert np.ptp(pixels(png), axis=(0, 1)).min() > 100  # something is drawn on a light ground
    worst = pixels(found["worst-episodes"])
    orange = (abs(worst - [224, 123, 57]) < 12).all(-1).sum()
    assert orange > 50  # frames of mistakes


def test_names_of_classes_are_whole(figures_of, tmp_path: Path):
    wide = {"episodes": {**GLYPHS["episodes"], "n_way": 5, "n_query": 8}}
    worst = pixels(figures_of({**GLYPHS, **wide}, tmp_path / "run")["worst-episodes"])
    assert worst[:, :2].min() > 200  # nothing reaches the edge


def test_many_classes_leave_a_matrix_that_can_be_read(figures_of, tmp_path: Path):
    confusion = figures_of({**GLYPHS, "evaluate": {"episodes": 60}}, tmp_path / "run")["confusion"]
    assert max(pixels(confusion).shape) < 1400


def test_a_run_without_files_has_none(figures_of):
    assert figures_of(GLYPHS, None) == {}

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import fsl_core as fsl
from fsl_core.builtin._strokes import CHUNK, draw_characters
from fsl_core.builtin.glyphs import Glyphs
from fsl_core.hooks.loader import load

DIGEST = "1355f2c193db6fb36a294ac19cbe50bb"
"""Of all pixels of the default set. Another one makes every result on glyphs incomparable with those before."""

DRAW = """
import hashlib
from fsl_core.builtin.glyphs import Glyphs
glyphs = Glyphs()
digest = hashlib.sha256()
for split in ("train", "validation", "test"):
    digest.update(glyphs.pool(split).items.numpy().tobytes())
print(digest.hexdigest()[:32])
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of the default set."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture
def glyphs(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Glyphs:
    monkeypatch.setenv("FSL_CACHE", str(drawn))
    return Glyphs()


def test_splits_have_their_classes_and_share_none(glyphs: Glyphs):
    pools = {split: glyphs.pool(split) for split in ("train", "validation", "test")}
    assert {split: len(pool.classes) for split, pool in pools.items()} == {
        "train": 1200,
        "validation": 200,
        "test": 400,
    }
    for pool in pools.values():
        assert set(pool.counts) == {20}
        assert pool.items.shape == (20 * len(pool.classes), 1, 28, 28)
        assert pool.items.dtype == torch.uint8
    for one, other in combinations(pools.values(), 2):
        assert not set(one.classes) & set(other.classes)


def test_no_two_drawings_are_alike_and_none_is_empty(glyphs: Glyphs):
    images = torch.cat([glyphs.pool(split).items for split in ("train", "validation", "test")])
    assert len({image.tobytes() for image in images.numpy()}) == len(images)
    ink = (images > 127).flatten(1).sum(1)  # pixels of 784
    assert ink.min() >= 10
    assert ink.max() <= 300
    corners = images[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]].double()
    assert corners.mean() < 3  # the background is 0


def test_episodes(glyphs: Glyphs):
    episodes = glyphs.batch(
        "test", [3, 4], seed=0, task=fsl.TaskShape("classification", 20, 5, 15, (1, 28, 28), 20)
    )
    assert episodes.support.x.shape == (2, 100, 1, 28, 28)
    assert episodes.query.x.shape == (2, 300, 1, 28, 28)
    assert episodes.query.x.max() == 1
    with pytest.raises(
        fsl.DataError, match=r"glyphs.*20 items\. n_shot: 5 and n_query: 16 need at least 21"
    ):
        glyphs.batch(
            "test", [0], seed=0, task=fsl.TaskShape("classification", 5, 5, 16, (1, 28, 28), 5)
        )


def test_default_set_is_the_recorded_one_in_any_process_and_without_a_cache(
    glyphs: Glyphs, tmp_path: Path
):
    here = hashlib.sha256()
    for split in ("train", "validation", "test"):
        here.update(glyphs.pool(split).items.numpy().tobytes())
    assert here.hexdigest()[:32] == DIGEST

    unwritable = tmp_path / "a-file"  # a cache that cannot be written: everything is drawn again
    unwritable.touch()
    there = subprocess.run(
        [sys.executable, "-c", DRAW],
        env={**os.environ, "FSL_CACHE": str(unwritable), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == DIGEST


def test_second_source_reads_the_cache(glyphs: Glyphs, monkeypatch: pytest.MonkeyPatch):
    expected = glyphs.pool("test").digest
    monkeypatch.delattr("fsl_core.builtin._strokes.draw_characters")
    assert Glyphs().pool("test").digest == expected


def test_raw_pixels_do_not_solve_the_task_and_are_not_useless(glyphs: Glyphs):
    """5-way 1-shot nearest neighbour; on Omniglot it has about 0.45."""
    episodes = glyphs.batch("test", range(600), seed=0)
    distance = torch.cdist(episodes.query.x.flatten(2), episodes.support.x.flatten(2))
    accuracy = (distance.argmin(-1) == episodes.query.y).double().mean()
    assert 0.30 < accuracy < 0.60


class TestDrawCharacters:
    def test_a_drawing_does_not_depend_on_how_many_others_there_are(self):
        many = CHUNK // 20 + 10  # more than are rendered at a time
        few = draw_characters(many, 20)[-1:, :3]
        np.testing.assert_array_equal(draw_characters(many, 3)[-1:], few)

    def test_seeds_give_other_characters(self):
        assert (draw_characters(4, 3) != draw_characters(4, 3, seed=1)).any((1, 2, 3, 4)).all()

    def test_without_jitter_all_drawings_of_a_class_are_one(self):
        images = draw_characters(30, 4, jitter=0.0)
        assert (images == images[:, :1]).all()
        assert len({image.tobytes() for image in images[:, 0]}) == 30

    def test_more_jitter_makes_drawings_differ_more(self):
        calm, usual, wild = (
            draw_characters(50, 4, jitter).astype(float) for jitter in (0.3, 1.0, 2.0)
        )
        assert calm.std(1).mean() < usual.std(1).mean() < wild.std(1).mean()

    def test_strokes_are_antialiased_and_not_broken(self):
        """One pen position a pixel at least: no stroke of a drawing without jitter falls into
        dots."""
        image = draw_characters(200, 1, jitter=0.0)[:, 0, 0]
        assert ((image > 0) & (image < 255)).sum((1, 2)).min() > 0
        lonely = 0
        for drawing in image > 0:
            padded = np.pad(drawing, 1)
            neighbours = sum(
                np.roll(padded, (i, j), (0, 1)).astype(int) for i in (-1, 0, 1) for j in (-1, 0, 1)
            )
            lonely += int((padded & (neighbours == 1)).sum())
        assert lonely == 0


@pytest.mark.parametrize(
    ("option", "value"), [("jitter", -0.1), ("jitter", 2.5), ("alphabet", -1), ("n_way", 1)]
)
def test_options_have_bounds(option: str, value: float):
    options = load(entry_points=False).catalogue.get("episodes", "glyphs").options
    options.model_validate({"name": "glyphs"})
    with pytest.raises(ValidationError, match=option):
        options.model_validate({"name": "glyphs", option: value})

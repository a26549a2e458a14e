from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.data.augment import AUGMENTATIONS, crop_flip, flip
from fsl_core.data.draws import draw_bits

TOP = np.iinfo(np.uint64).max


def bits(row: float, column: float, mirror: float, n: int = 1) -> np.ndarray:
    """Bits that stand for these numbers in 0 .. 1."""
    return np.array([[min(int(v * 2**64), int(TOP)) for v in (row, column, mirror)]] * n, np.uint64)


class Squares(fsl.PooledEpisodes):
    """Ten classes of twelve random images."""

    name = "squares"

    def __init__(self, augment: str):
        super().__init__(3, 2, 4, input_shape=(3, 8, 6), augment=augment)

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        images = torch.randint(
            0, 256, (120, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        return fsl.LabelledPool(images, tuple(f"c{i}" for i in range(10)), (12,) * 10)


@pytest.fixture
def images(random: torch.Generator) -> torch.Tensor:
    return torch.randint(1, 256, (2000, 3, 8, 6), dtype=torch.uint8, generator=random)


def test_flip(images: torch.Tensor):
    assert torch.equal(flip(images, bits(0, 0, 0.49, 2000)), images.flip(-1))
    assert torch.equal(flip(images, bits(0, 0, 0.51, 2000)), images)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0.5, 0.5), (1, 1), (1, 0), (0.2, 0.9)])
def test_crop_against_slices(images: torch.Tensor, row: float, column: float):
    top, left = (min(int(v * 9), 8) for v in (row, column))
    framed = torch.nn.functional.pad(images, (4, 4, 4, 4))
    assert torch.equal(
        crop_flip(images, bits(row, column, 0.9, 2000)),
        framed[:, :, top : top + 8, left : left + 6],
    )


def test_every_corner_and_both_sides_are_equally_likely(images: torch.Tensor):
    drawn = draw_bits(0, "x", range(2000), 3)
    marked = torch.zeros_like(images)
    marked[:, :, 4, 3] = 255  # never cut off upwards; its place tells the corner
    changed = crop_flip(marked, drawn)[:, 0]
    rows = changed.amax(2).argmax(1)[changed.flatten(1).amax(1) > 0]
    counts = torch.bincount(rows, minlength=8)
    assert (counts > 0).all()
    mirrored = (flip(images, drawn) != images).flatten(1).any(1).float().mean()
    assert abs(mirrored - 0.5) < 4 * 0.5 / 2000**0.5


def cuts(image: torch.Tensor) -> list[torch.Tensor]:
    """The picture framed by four black pixels, cut to its size at every place."""
    _, height, width = image.shape
    framed = torch.nn.functional.pad(image, [4] * 4)
    corners = itertools.product(range(9), range(9))
    return [framed[:, row : row + height, column : column + width] for row, column in corners]


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
class TestEpisodes:
    def test_the_same_images_changed(self, augment: str):
        plain, changed = (Squares(name).batch("train", range(5), 3) for name in ("none", augment))
        assert torch.equal(plain.support.y, changed.support.y)
        assert not torch.equal(plain.query.x, changed.query.x)
        assert len(plain.query.x)
        for before, after in zip(
            plain.query.x.flatten(0, 1), changed.query.x.flatten(0, 1), strict=True
        ):
            pictures = [before] if augment == "flip" else cuts(before)
            assert any(torch.equal(after, each) for x in pictures for each in (x, x.flip(-1)))

    def test_a_function_of_seed_and_index(self, augment: str):
        torch.manual_seed(0)
        together = Squares(augment).batch("train", [4, 9, 2], 7)
        torch.manual_seed(1)
        alone = Squares(augment).batch("train", [9], 7)
        assert torch.equal(together.support.x[1], alone.support.x[0])
        assert torch.equal(together.query.x[1], alone.query.x[0])
        other = Squares(augment).batch("train", [9], 8)
        assert not torch.equal(other.support.x, alone.support.x)

    def test_more_queries_leave_the_support_set(self, augment: str):
        source = Squares(augment)
        more = fsl.TaskShape("classification", 3, 2, 7, (3, 8, 6), 3)
        few, many = source.batch("train", range(4), 0), source.batch("train", range(4), 0, more)
        assert torch.equal(few.support.x, many.support.x)
        assert torch.equal(
            few.query.x.unflatten(1, (3, 4)), many.query.x.unflatten(1, (3, 7))[:, :, :4]
        )

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_only_training(self, augment: str, split: str):
        plain, other = (Squares(name).batch(split, range(5), 3) for name in ("none", augment))
        assert torch.equal(plain.support.x, other.support.x)
        assert torch.equal(plain.query.x, other.query.x)


def test_every_named_augmentation_is_there():
    assert list(AUGMENTATIONS) == ["none", "flip", "crop-flip"]

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.sinusoid import Grid, Sinusoid


def test_shapes():
    source = Sinusoid(n_shot=5, n_query=7)
    batch = source.batch("train", [3, 8], seed=0)
    assert source.task == fsl.TaskShape("regression", 1, 5, 7, (1,), 1)
    assert batch.support.x.shape == batch.support.y.shape == (2, 5, 1)
    assert batch.query.x.shape == batch.query.y.shape == (2, 7, 1)
    assert {t.dtype for t in (*batch.support, *batch.query)} == {torch.float32}
    assert batch.id.tolist() == [3, 8]


def test_every_episode_is_one_wave_of_the_papers_range():
    batch = Sinusoid(n_shot=10, n_query=90).batch("train", range(500), seed=0)
    x, y = (
        torch.cat(parts, 1)[..., 0].double().numpy()
        for parts in zip(batch.support, batch.query, strict=True)
    )
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    assert abs(x.mean()) < 5 * 10 / np.sqrt(12 * x.size)
    waves = np.array(
        [
            np.linalg.lstsq(np.stack([np.sin(a), np.cos(a)], 1), b)[0]
            for a, b in zip(x, y, strict=True)
        ]
    )
    amplitude, phase = (
        np.hypot(*waves.T),
        np.arctan2(-waves[:, 1], waves[:, 0]),
    )  # A sin(x - p) = A cos p sin x - A sin p cos x
    np.testing.assert_allclose(y, amplitude[:, None] * np.sin(x - phase[:, None]), atol=1e-5)
    for value, low, high in ((amplitude, 0.1, 5), (phase, 0, np.pi)):
        assert low - 1e-5 <= value.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < value.max() <= high + 1e-5
        assert abs(value.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 500)
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 5 / np.sqrt(500)


def test_an_episode_is_the_same_in_any_batch():
    source = Sinusoid()
    many = source.batch("test", range(9), seed=4).unbatch()
    one = Sinusoid().batch("test", [6], seed=4).unbatch()[0]
    assert torch.equal(one.support.x, many[6].support.x)
    assert torch.equal(one.query.y, many[6].query.y)


@pytest.mark.parametrize(("split", "seed"), [("train", 4), ("test", 5)])
def test_splits_and_seeds_are_different_draws(split: fsl.Split, seed: int):
    source = Sinusoid()
    assert not torch.isin(
        source.batch(split, range(9), seed).support.x, source.batch("test", range(9), 4).support.x
    ).any()


def test_more_queries_leave_the_support_set_as_it_was():
    source = Sinusoid()
    wide, narrow = (
        source.batch("test", [0], 0, replace(source.task, n_query=50)),
        source.batch("test", [0], 0),
    )
    assert torch.equal(wide.support.y, narrow.support.y)
    assert torch.equal(wide.query.x[:, :10], narrow.query.x)


def test_any_split_and_device_will_do():
    source = Sinusoid().to("meta")
    source.check("validation")
    assert source.batch("train", [0], 0).query.y.is_meta


def test_a_finite_set_of_training_waves_is_repeated_at_fresh_points():
    source, endless = Sinusoid(tasks=3), Sinusoid()
    assert (source.tasks, endless.tasks) == (3, None)
    batch, fresh = (s.batch("train", range(6), seed=0) for s in (source, endless))
    assert batch.id.tolist() == [0, 1, 2, 0, 1, 2]
    for tensor, other in ((batch.support, fresh.support), (batch.query, fresh.query)):
        assert torch.equal(tensor.x, other.x)  # a wave changes, not its points
        assert torch.equal(tensor.y[:3], other.y[:3])
        assert not torch.equal(tensor.y[3:], other.y[3:])
    x, y = (
        torch.cat([first, second], 1)[..., 0].double()
        for first, second in zip(batch.support, batch.query, strict=True)
    )
    basis = torch.stack([x.sin(), x.cos()], -1)
    waves = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0]
    torch.testing.assert_close(waves[3:], waves[:3], rtol=0, atol=1e-5)


def test_test_waves_stay_fresh():
    source, endless = Sinusoid(tasks=3), Sinusoid()
    for split in ("validation", "test"):
        batch = source.batch(split, range(6), seed=0)
        assert batch.id.tolist() == list(range(6))
        assert torch.equal(batch.query.y, endless.batch(split, range(6), seed=0).query.y)


def test_a_grid_is_the_same_waves_under_every_seed():
    """By the formula of the code that it follows, which adds its phase."""
    source = Sinusoid(grid=Grid(amplitudes=3, phases=5))
    assert source.tasks == 15
    waves = [(a, np.pi * k / 5) for a in (1, 2, 3) for k in range(1, 6)]
    for seed in (0, 7):
        batch = source.batch("train", range(30), seed)
        assert batch.id.tolist() == [*range(15), *range(15)]
        for (amplitude, phase), x, y in zip(waves * 2, batch.query.x, batch.query.y, strict=True):
            expected = amplitude * (x.double() + phase).sin()
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)


def test_waves_that_a_grid_never_trained_on_lie_between_its_own():
    batch = Sinusoid(n_shot=9, grid=Grid(amplitudes=5, phases=4)).batch("test", range(500), seed=0)
    x, y = batch.support.x.double(), batch.support.y.double()
    waves = torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], -1), y).solution[..., 0]
    amplitude, added = waves.norm(dim=1), torch.atan2(waves[:, 1], waves[:, 0])
    for value, low, high in ((amplitude, 1, 5), (added % (2 * np.pi), np.pi / 4, np.pi)):
        assert low - 1e-3 <= value.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < value.max() <= high + 1e-3
    assert batch.id.tolist() == list(range(500))


@pytest.mark.parametrize("waves", [{"tasks": 4}, {"grid": Grid(amplitudes=2, phases=2)}], ids=str)
def test_waves_in_random_order_are_those_that_come_in_turn(waves):
    in_turn = Sinusoid(**waves).batch("train", range(4), seed=3)
    batch = Sinusoid(order="random", **waves).batch("train", range(400), seed=3)
    counts = torch.bincount(batch.id, minlength=4)
    assert counts.sum() == 400
    assert counts.min() > 60
    basis = [torch.cat([s.support.x.sin(), s.support.x.cos()], -1) for s in (in_turn, batch)]
    known, found = (
        torch.linalg.lstsq(a.double(), s.support.y.double()).solution[..., 0]
        for a, s in zip(basis, (in_turn, batch), strict=True)
    )
    torch.testing.assert_close(found, known[batch.id], rtol=0, atol=1e-3)
    one = Sinusoid(order="random", **waves).batch("train", [11], seed=3)
    assert torch.equal(one.query.y[0], batch.query.y[11])


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"tasks: 3 with a grid of 4 waves\. One of the two"):
        Sinusoid(tasks=3, grid=Grid(amplitudes=2, phases=2))
    with pytest.raises(ValueError, match=r"order: random of waves that never come again"):
        Sinusoid(order="random")


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ("{name: sinusoid, grid: {amplitudes: 5, phase: 5}}", "episodes.grid"),
        (
            "{name: mixture, sources: [{name: sinusoid, grid: {amplitudes: 5, phase: 5}}]}",
            "episodes.sources.0.grid",
        ),
    ],
)
def test_an_unknown_key_of_the_grid_is_told_the_options_of_the_grid(
    tmp_path: Path, section: str, where: str
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"episodes: {section}\nbackbone: {{name: mlp}}\nadapter: {{name: nearest-centroid}}\n"
        "outer: {steps: 2}\n"
    )
    told = f"{where}.phase: section '{where}' has no such option. Did you mean 'phases'?"
    with pytest.raises(fsl.RecipeError, match=re.escape(told)):
        fsl.load_recipe(recipe)

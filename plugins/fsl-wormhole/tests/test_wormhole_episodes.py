"""What the episodes hold, and that an episode is a function of (seed, split, index)."""

from dataclasses import replace
from math import erf, sqrt

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_wormhole import ThresholdComparison, WaveletTransform
from fsl_wormhole.wavelet import SCALE, wavelet

SOURCES = [
    ThresholdComparison,
    WaveletTransform,
    lambda: WaveletTransform("ricker", samples=40, harmonics=6),
]


@pytest.mark.parametrize("source", SOURCES)
def test_shapes(source):
    source = source()
    task, batch = source.task, source.batch("train", [3, 8], seed=0)
    for items, n in ((batch.support, task.n_shot), (batch.query, task.n_query)):
        assert items.x.shape == (2, task.n_way * n, *task.input_shape)
        assert items.x.dtype == torch.float32
        if task.kind == "classification":
            assert items.y.tolist() == [[0] * n + [1] * n] * 2
        else:
            assert (items.y.shape, items.y.dtype) == ((2, n, 1), torch.float32)
    assert batch.id.tolist() == [3, 8]


@pytest.mark.parametrize("source", SOURCES)
def test_an_episode_is_the_same_in_any_batch(source):
    many = source().batch("test", range(9), seed=4).unbatch()
    one = source().batch("test", [6], seed=4).unbatch()[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip((*one.support, *one.query), (*many[6].support, *many[6].query), strict=True)
    )


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("split", "seed"), [("train", 4), ("test", 5)])
def test_splits_and_seeds_are_different_draws(source, split, seed):
    items = source().batch(split, range(9), seed).support.x
    assert not torch.isin(items, source().batch("test", range(9), 4).support.x).any()


@pytest.mark.parametrize("source", SOURCES)
def test_more_queries_leave_the_support_set_as_it_was(source):
    source = source()
    wide, narrow = (
        source.batch("test", [0], 0, replace(source.task, n_query=50)),
        source.batch("test", [0], 0),
    )
    assert torch.equal(wide.support.x, narrow.support.x)
    assert torch.equal(wide.support.y, narrow.support.y)
    assert torch.isin(narrow.query.x, wide.query.x).all()


@pytest.mark.parametrize("source", SOURCES)
def test_any_split_and_device_will_do(source):
    source = source().to("meta")
    source.check("validation")
    assert source.batch("train", [0], 0).query.x.is_meta


def sides(source, episodes=2000):
    """Items of each episode by class, (episodes, 2, n)."""
    batch = source.batch("train", range(episodes), seed=0)
    parts = [s.x.view(episodes, 2, -1) for s in batch[:2]]
    return torch.cat(parts, 2).double().numpy()


@pytest.mark.parametrize(("flipped", "spread"), [(0.5, 0.5), (0.0, 0.5), (1.0, 0.2), (0.2, 0.9)])
def test_a_threshold_divides_the_classes(flipped, spread):
    below, above = sides(
        ThresholdComparison(n_shot=20, n_query=30, flipped=flipped, spread=spread)
    ).transpose(1, 0, 2)
    exchanged = below.mean(1) > above.mean(1)
    assert abs(exchanged.mean() - flipped) <= 5 * np.sqrt(flipped * (1 - flipped) / 2000)
    low, high = (np.where(exchanged[:, None], *pair) for pair in ((above, below), (below, above)))
    assert (low.max(1) < high.min(1)).all()
    assert low.min() >= -1
    assert high.max() <= 1
    threshold = (low.max(1) + high.min(1)) / 2  # to a few hundredths: the gap between 100 numbers
    assert abs(threshold.mean()) < 5 * spread / np.sqrt(3 * 2000)
    assert spread - 0.1 < np.quantile(np.abs(threshold), 0.995) < spread + 0.1
    for side, end in (
        (low, -1),
        (high, 1),
    ):  # uniform between the threshold and the end: the mean is their middle
        middle = side.mean(1) - (threshold + end) / 2
        assert abs(middle.mean()) < 0.02


def test_threshold_needs_two_ways():
    source = ThresholdComparison()
    for call in (source.check, lambda split, task: source.batch(split, [0], 0, task)):
        with pytest.raises(
            fsl.DataError,
            match=r"episodes 'threshold-comparison': n_way 5\. 2: below and above the threshold",
        ):
            call("test", replace(source.task, n_way=5))


def least_squares(source, episodes=200):
    """The linear map of each episode, and how well it fits, from more signals than unknowns."""
    batch = source.batch("train", range(episodes), seed=0, task=replace(source.task, n_shot=40))
    fits = []
    for x, y in zip(*(t.double().numpy() for t in batch.support), strict=True):
        w = np.linalg.lstsq(x, y[:, 0], rcond=1e-6)[0]
        np.testing.assert_allclose(x @ w, y[:, 0], atol=1e-4)
        fits.append(w)
    return np.array(fits)


def band(samples, harmonics):
    """Orthonormal basis of the signals, (samples, 2 * harmonics)."""
    waves = 2 * np.pi * np.outer(np.arange(samples), np.arange(1, harmonics + 1)) / samples
    return np.concatenate([np.cos(waves), np.sin(waves)], 1) / np.sqrt(samples / 2)


@pytest.mark.parametrize("kind", ["haar", "ricker"])
def test_labels_are_coefficients_of_one_wavelet(kind):
    """The map is the wavelet's part in the band of the signals; its scale and shift are found again
    on a fine grid."""
    source = WaveletTransform(kind)
    basis = band(32, 4)
    scale, shift = (
        g.ravel()
        for g in np.meshgrid(np.linspace(*SCALE, 81), np.linspace(0, 1, 800, endpoint=False))
    )
    candidates = wavelet(kind, np.arange(32) / 32, scale, shift) @ basis
    found = least_squares(source) @ basis
    nearest = np.array([np.linalg.norm(candidates - w, axis=1).argmin() for w in found])
    worst = np.linalg.norm(candidates[nearest] - found, axis=1).max()
    assert worst < (
        1e-4 if kind == "haar" else 0.02
    )  # Haar's samples are few distinct sets; Ricker's depend on the exact scale
    shifts = np.sort(shift[nearest])
    assert (
        np.abs(shifts - np.linspace(0, 1, len(shifts))).max() < 1.63 / np.sqrt(len(shifts)) + 0.02
    )  # Kolmogorov, 1 %


@pytest.mark.parametrize("kind", ["haar", "ricker"])
def test_wavelets_written_out(kind):
    times, scale, shift = np.arange(64) / 64, np.array([0.5, 0.25, 0.3]), np.array([0.5, 0.05, 0.9])
    found = wavelet(kind, times, scale, shift)
    for row, s, b in zip(found, scale, shift, strict=True):
        expected = []
        for t in times:
            d = min((t - b + k for k in (-1, 0, 1)), key=abs)
            if kind == "haar":
                expected.append(1.0 if -s / 2 <= d < 0 else -1.0 if 0 <= d < s / 2 else 0.0)
            else:
                expected.append((1 - (4 * d / s) ** 2) * np.exp(-((4 * d / s) ** 2) / 2))
        expected = np.array(expected) - (np.mean(expected) if kind == "ricker" else 0)
        np.testing.assert_allclose(row, expected / np.sqrt((expected**2).sum()), atol=1e-12)


normal_share = np.vectorize(lambda z: (1 + erf(z / sqrt(2))) / 2)


def test_signals_are_normal_and_of_unit_variance_within_the_band():
    batch = WaveletTransform(samples=32, harmonics=4).batch("train", range(300), seed=0)
    x = torch.cat([batch.support.x, batch.query.x], 1).flatten(0, 1).double().numpy()
    basis = band(32, 4)
    coefficients = x @ basis / np.sqrt(32 / 8)  # standard normal
    np.testing.assert_allclose(x @ basis @ basis.T, x, atol=1e-5)
    ordered = np.sort(coefficients.ravel())
    share = (np.arange(len(ordered)) + 0.5) / len(ordered)
    assert np.abs(normal_share(ordered) - share).max() < 1.63 / np.sqrt(
        len(ordered)
    )  # Kolmogorov, 1 %
    covariance = np.cov(coefficients.T)
    assert np.abs(covariance - np.eye(8)).max() < 5 * np.sqrt(2 / len(x))


def test_too_many_harmonics_are_refused():
    with pytest.raises(ValueError, match=r"harmonics: 8 with 16 samples\. At most 7"):
        WaveletTransform(samples=16, harmonics=8)

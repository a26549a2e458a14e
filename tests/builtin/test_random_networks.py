"""Functions of random networks: the family, its spreads, and what repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.random_networks import RandomNetworks


def points(source: RandomNetworks, count: int = 4, seed: int = 0, split: fsl.Split = "train"):
    batch = source.batch(split, range(count), seed)
    return (
        torch.cat(parts, 1)[..., 0].double()
        for parts in zip(batch.support, batch.query, strict=True)
    )


def test_shapes_and_defaults_of_the_official_settings():
    source = RandomNetworks()
    batch = source.batch("train", [3, 203], seed=0)
    assert source.task == fsl.TaskShape("regression", 1, 5, 100, (1,), 1)
    assert batch.support.x.shape == (2, 5, 1)
    assert batch.query.y.shape == (2, 100, 1)
    assert source.tasks == 200
    assert batch.id.tolist() == [3, 3]


def test_values_are_those_of_torch_networks():
    source = RandomNetworks(hidden=(4, 3), activation="sigmoid")
    x, y = points(source)
    for task, (inputs, outputs) in enumerate(zip(x, y, strict=True)):
        net = torch.nn.Sequential(
            torch.nn.Linear(1, 4),
            torch.nn.Sigmoid(),
            torch.nn.Linear(4, 3),
            torch.nn.Sigmoid(),
            torch.nn.Linear(3, 1),
        ).double()
        weights = source._networks("train", [task], 0)
        with torch.no_grad():
            for layer, (matrix, shift) in zip(net[::2], weights, strict=True):
                layer.weight.copy_(torch.from_numpy(matrix[0].T.copy()))
                layer.bias.copy_(torch.from_numpy(shift[0, 0].copy()))
        torch.testing.assert_close(net(inputs[:, None])[:, 0], outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("spread", "last"), [(0.25, 4.0), (0.0, 1.0)])
def test_spreads_are_variances_around_the_centre(spread, last):
    source = RandomNetworks(spread=spread, last_spread=last)
    networks = source._networks("train", range(3000), 0)
    for number, (matrix, _) in enumerate(networks):
        wanted = last if number == len(networks) - 1 else spread
        found = matrix.var(0).mean()
        assert abs(found - wanted) <= 0.05 * wanted + 1e-12
    centre = np.concatenate([matrix.mean(0).ravel() for matrix, _ in networks[:-1]])
    assert abs(centre.std() - 1) < 0.1
    other = source._networks("test", range(5), 0)
    assert not np.allclose(other[0][0].mean(0), networks[0][0].mean(0), atol=0.1)


def test_without_a_spread_tasks_share_all_but_the_last_layer():
    x, y = points(RandomNetworks(spread=0.0, last_spread=0.0, n_query=500), 2)
    both = [dict(zip(a.tolist(), b.tolist(), strict=True)) for a, b in zip(x, y, strict=True)]
    shared = both[0].keys() & both[1].keys()
    assert len(shared) > 100
    assert all(both[0][key] == pytest.approx(both[1][key], abs=1e-5) for key in shared)


def test_inputs_are_shared_and_never_repeat_within_a_task():
    x, _ = points(RandomNetworks(n_query=400), 3)
    assert all(len(row.unique()) == 405 for row in x)
    assert len(x.unique()) <= 1000
    assert -1 <= x.min() < -0.98
    assert 0.98 < x.max() <= 1


def test_tasks_come_again_at_fresh_points():
    finite, unbounded = RandomNetworks(tasks=2), RandomNetworks(tasks=None)
    batch = finite.batch("train", [0, 1, 2], 0)
    assert batch.id.tolist() == [0, 1, 0]
    assert not torch.equal(batch.support.x[0], batch.support.x[2])
    first, again = (finite._networks("train", [n], 0)[0][0] for n in (0, 0))
    np.testing.assert_array_equal(first, again)
    assert unbounded.batch("train", [7], 0).id.tolist() == [7]
    assert unbounded.tasks is None


def test_an_episode_is_the_same_in_any_batch():
    source = RandomNetworks(noise=0.1)
    many = source.batch("test", range(4), seed=4).unbatch()
    one = RandomNetworks(noise=0.1).batch("test", [2], seed=4).unbatch()[0]
    torch.testing.assert_close(one.support, many[2].support)
    torch.testing.assert_close(one.query, many[2].query)


def test_noise_and_standardised_values():
    plain, noisy = (list(points(RandomNetworks(noise=noise), 40))[1] for noise in (0.0, 0.1))
    assert abs((noisy - plain).std() - 0.1) < 0.005
    y = list(points(RandomNetworks(standardise=True, n_query=900), 20))[1]
    assert abs(y.mean()) < 0.02
    assert (y.std(1) - 1).abs().max() < 0.1


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"n_shot \+ n_query: 5 \+ 1000. At most 1000"):
        RandomNetworks(n_query=1000)
    more = fsl.TaskShape("regression", 1, 5, 999, (1,), 1)
    with pytest.raises(fsl.DataError, match=r"random-networks': 5 \+ 999 points of 1000 inputs"):
        RandomNetworks().check("test", more)

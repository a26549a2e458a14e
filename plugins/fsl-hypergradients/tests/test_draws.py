"""Random numbers from keys."""

import torch
from torch.func import vmap

from fsl_hypergradients.draws import normal, permutation, words

CPU = torch.device("cpu")
KNOWN = [[3402466294, 204323590, 2897854121], [1120106112, 430142769, 2567876175]]


def test_words_are_known():
    """They are part of a run's bits: a change here changes trained weights."""
    assert words(3, [0], CPU).tolist() == KNOWN[0]
    assert words(3, [1, 2**40], CPU).tolist() == KNOWN[1]


def test_moments_and_independence():
    like = torch.zeros(1)
    first, second = (normal(200_000, [key], like) for key in (0, 1))
    for drawn in (first, second):
        assert abs(drawn.mean()) < 0.01
        assert abs(drawn.var() - 1) < 0.02
        assert abs((drawn**4).mean() - 3) < 0.1
    assert abs((first * second).mean()) < 0.01
    assert abs((first[1:] * first[:-1]).mean()) < 0.01


def test_every_bit_is_drawn():
    drawn = words(4096, [3], CPU)
    assert len(drawn.unique()) > 4090
    shares = torch.stack([(drawn >> bit & 1).to(torch.float64).mean() for bit in range(32)])
    assert ((shares - 0.5).abs() < 0.04).all()
    assert (drawn >= 0).all()
    assert (drawn < 2**32).all()


def test_keys_may_be_tensors_that_nobody_can_read():
    keys = torch.tensor([4, 9])
    together = vmap(lambda key: words(5, [7, key], CPU))(keys)
    assert together.tolist() == [words(5, [7, int(key)], CPU).tolist() for key in keys]


def test_a_permutation_has_every_number():
    drawn = [permutation(12, [0, key], CPU) for key in range(3)]
    assert all(sorted(row.tolist()) == list(range(12)) for row in drawn)
    assert not torch.equal(drawn[0], drawn[1])

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fsl_core.data.draws import draw_bits, to_distinct, to_uniform


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as the paper states it, in Python's integers."""
    low = 2**64 - 1
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (b >> 64) ^ counter[1] ^ key[0],
            b & low,
            (a >> 64) ^ counter[3] ^ key[1],
            a & low,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & low, (key[1] + 0xBB67AE8584CAA73B) & low]
    return counter


def test_bits_are_those_of_philox_with_the_index_as_counter():
    digest = hashlib.blake2b(b"3/test", digest_size=16).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]
    expected = [
        philox([block, 0, index, 0], key) for index in (0, 41) for block in (1, 2)
    ]  # NumPy counts before it draws
    assert draw_bits(3, "test", [0, 41], 8).reshape(4, 4).tolist() == expected


def test_a_row_depends_on_its_own_index_and_a_longer_row_starts_the_same():
    many = draw_bits(3, "train", range(10), 9)
    np.testing.assert_array_equal(draw_bits(3, "train", [7], 9)[0], many[7])
    np.testing.assert_array_equal(draw_bits(3, "train", [7], 4)[0], many[7, :4])
    np.testing.assert_array_equal(
        draw_bits(3, "train", [2**63], 1), draw_bits(3, "train", [2**63], 5)[:, :1]
    )


@pytest.mark.parametrize("other", [(4, "train"), (3, "test")])
def test_another_seed_or_split_is_another_stream(other: tuple[int, str]):
    assert not np.isin(draw_bits(*other, range(50), 20), draw_bits(3, "train", range(50), 20)).any()


def test_uniforms_fill_the_unit_interval():
    u = to_uniform(draw_bits(0, "train", range(200), 100))
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)
    assert to_uniform(np.array([2**64 - 1], np.uint64)) == 1 - 2.0**-53


def test_every_ordered_choice_is_as_likely():
    picks = to_distinct(draw_bits(0, "train", range(12_000), 2), np.full(12_000, 4))
    pairs, times = np.unique(picks, axis=0, return_counts=True)
    assert len(pairs) == 12
    assert np.abs(times - 1000).max() < 5 * np.sqrt(1000)


def test_choices_are_distinct_and_below_their_own_population():
    population = np.array([5, 6, 40, 1000])
    picks = to_distinct(draw_bits(0, "train", range(4), 5), population)
    assert (picks < population[:, None]).all()
    assert (picks >= 0).all()
    assert all(len(set(row)) == 5 for row in picks.tolist())
    assert sorted(picks[0]) == [0, 1, 2, 3, 4]


def test_a_choice_does_not_depend_on_the_rows_beside_it():
    bits = draw_bits(0, "train", range(3), 4)
    together = to_distinct(bits, np.array([9, 200, 11]))
    np.testing.assert_array_equal(to_distinct(bits[:1], np.array([9])), together[:1])

"""Solves and exponentials against NumPy and SciPy in float64, and their gradients where kernels are
singular."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.func import grad, vmap

from fsl_kernel_closed_form import JitterWarning, finite_time, solve
from fsl_kernel_closed_form.exponential import _second

TIMES = (0.01, 1.0, 30.0, 1e4)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def features(generator, n=6, d=9, copies=1):
    """n items of d numbers; with copies, each of them that many times: the kernel is singular, its
    eigenvalues repeat."""
    rows = torch.randn(n // copies, d, generator=generator, dtype=torch.float64) / d**0.5
    return rows.repeat_interleave(copies, 0)


def right_side(generator, n=6, k=2):
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize(("copies", "d"), [(1, 9), (3, 9), (1, 2)])
@pytest.mark.parametrize(("regularisation", "jitter"), [(0.3, 0.0), (0.0, 1e-2), (0.1, 1e-4)])
def test_solve_is_that_of_numpy(copies, d, regularisation, jitter, generator):
    z, y = features(generator, copies=copies, d=d), right_side(generator)
    gram = z @ z.T
    matrix = gram.numpy() + (regularisation + jitter * np.diag(gram).mean()) * np.eye(6)
    assert close(solve(gram, y, regularisation, jitter), np.linalg.solve(matrix, y.numpy()))


def test_solve_takes_batches(generator):
    z = torch.stack([features(generator) for _ in range(3)])
    y = torch.stack([right_side(generator) for _ in range(3)])
    gram, strengths = z @ z.mT, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = solve(gram, y, strengths, 1e-3)
    for i in range(3):
        assert close(found[i], solve(gram[i], y[i], strengths[i], 1e-3), 1e-13)


def test_float32_comes_out_in_float64_and_keeps_digits_that_float32_loses(generator):
    """Near-duplicates and a small regularisation: float32 loses every digit, float64 inside keeps
    those of its inputs."""
    z, y = features(generator, copies=3), right_side(generator)
    z = (z + 1e-4 * features(generator)).float()
    gram = z.double() @ z.double().T
    expected = np.linalg.solve(gram.numpy() + 1e-7 * np.eye(6), y.numpy())
    assert close(solve(gram, y.float().double(), 1e-7), torch.as_tensor(expected), 1e-6)
    in_float32 = torch.linalg.solve(z @ z.T + 1e-7 * torch.eye(6), y.float())
    assert not close(in_float32.double(), expected, 0.1)


@pytest.mark.parametrize("copies", [1, 3, 6])
def test_gradients_of_solve_at_singular_kernels(copies, generator):
    z, y = (
        features(generator, copies=copies).requires_grad_(),
        right_side(generator).requires_grad_(),
    )
    strength = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def through(z, y, strength):
        return solve(z @ z.T, y, strength, 1e-2)

    assert torch.autograd.gradcheck(through, (z, y, strength))
    assert torch.autograd.gradgradcheck(through, (z, y, strength))


def test_gradient_with_the_default_jitter_at_duplicates_of_one_class(generator):
    """Relative jitter 1e-6 on a singular kernel; predictions, not the weights, which is where
    duplicates cancel."""
    rows, labels, query = (
        features(generator, n=3),
        right_side(generator, n=3),
        features(generator, n=2),
    )

    def predictions(rows):
        z, y = rows.repeat_interleave(2, 0), labels.repeat_interleave(2, 0)
        return query @ z.T @ solve(z @ z.T, y, 0.0, 1e-6)

    assert torch.autograd.gradcheck(predictions, (rows.requires_grad_(),), rtol=1e-5, atol=1e-7)


def test_a_raised_jitter_is_used_and_reported(generator):
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -5e-7], dtype=torch.float64))
    y = right_side(generator, n=3)
    message = (
        r"solve: a kernel matrix of 3 rows is not positive definite in float64 with relative "
        r"jitter 0, so 1e-06 was used\. "
    )
    with pytest.warns(JitterWarning, match=message + "A larger regularisation or jitter"):
        found = solve(indefinite, y, 0.0)
    mean = indefinite.diagonal().mean()
    assert close(
        found, torch.linalg.solve(indefinite + 1e-6 * mean * torch.eye(3, dtype=torch.float64), y)
    )


def test_each_kernel_of_a_batch_has_its_own_jitter_also_under_vmap(generator):
    good = torch.eye(3, dtype=torch.float64)
    bad = torch.diag(torch.tensor([1.0, 1.0, -5e-7], dtype=torch.float64))
    both, y = torch.stack([good, bad]), torch.stack([right_side(generator, n=3)] * 2)
    with pytest.warns(JitterWarning):
        batched = solve(both, y, 0.0)
    assert close(batched[0], y[0], 1e-15)
    mapped = vmap(lambda gram, y: solve(gram, y, 0.0))(
        both, y
    )  # no value can be read there: no warning either
    assert torch.equal(mapped, batched)


def test_what_no_jitter_mends_is_nan(generator):
    y = right_side(generator, n=2)
    assert solve(torch.full((2, 2), torch.nan), y, 1.0, 1e-4).isnan().all()
    assert solve(torch.diag(torch.tensor([1.0, -1.0])), y, 0.0).isnan().all()


def test_a_kernel_of_zeros_is_solved(generator):
    assert solve(torch.zeros(3, 3), right_side(generator, n=3), 0.0, 1e-6).isfinite().all()


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("time", TIMES)
def test_exact_exponential_is_that_of_scipy(copies, time, generator):
    z, y = features(generator, copies=copies), right_side(generator)
    gram = (z @ z.T).numpy()
    block = np.zeros(
        (12, 12)
    )  # exp [[A, I], [0, 0]] = [[exp A, (exp A - I) / A], [0, I]], for singular A too
    block[:6, :6], block[:6, 6:] = -time * gram, time * np.eye(6)
    assert close(finite_time(z @ z.T, y, time), scipy.linalg.expm(block)[:6, 6:] @ y.numpy())


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("order", [1, 2])
def test_pade_approximants_are_those_of_the_paper(order, time, generator):
    z, y = features(generator), right_side(generator)
    gram = (z @ z.T).numpy()
    a, identity = -time * gram, np.eye(6)
    square = a @ a / 12 if order == 2 else 0
    exponential = np.linalg.solve(identity - a / 2 + square, identity + a / 2 + square)
    expected = np.linalg.solve(gram, (identity - exponential) @ y.numpy())
    assert close(
        finite_time(z @ z.T, y, time, f"pade{order}{order}"), expected, 1e-7 if time > 100 else 1e-9
    )


@pytest.mark.parametrize(("exponential", "error"), [("pade11", 1e-4), ("pade22", 1e-9)])
def test_pade_approximants_approach_the_exponential_for_short_times(exponential, error, generator):
    z, y = features(generator), right_side(generator)
    assert close(finite_time(z @ z.T, y, 0.01, exponential), finite_time(z @ z.T, y, 0.01), error)
    assert not close(
        finite_time(z @ z.T, y, 100.0, exponential), finite_time(z @ z.T, y, 100.0), 0.1
    )


@pytest.mark.parametrize("exponential", ["exact", "pade11", "pade22"])
@pytest.mark.parametrize("copies", [1, 3, 6])
def test_gradients_of_the_exponential_at_repeated_eigenvalues(exponential, copies, generator):
    z, y = (
        features(generator, copies=copies).requires_grad_(),
        right_side(generator).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda z, y: finite_time(z @ z.T, y, 2.0, exponential), (z, y))


@pytest.mark.parametrize("time", [0.5, 50.0])
def test_gradient_of_the_exact_exponential_is_that_of_matrix_exp(time, generator):
    """An independent derivative: torch.linalg.matrix_exp of the block matrix, which has no
    eigenvalues to divide by."""
    gram, y = torch.eye(4, dtype=torch.float64), right_side(generator, n=4)

    def by_blocks(gram):
        top = torch.cat([-time * gram, time * torch.eye(4)], 1)
        return torch.linalg.matrix_exp(torch.cat([top, torch.zeros(4, 8)]))[:4, 4:] @ y

    found = grad(lambda gram: finite_time(gram, y, time).square().sum())(gram)
    expected = grad(lambda gram: by_blocks(gram).square().sum())(gram)
    assert close(
        found + found.T, expected + expected.T
    )  # the gradient with respect to a symmetric matrix


def test_time_without_end_is_the_solve(generator):
    z, y = features(generator), right_side(generator)
    assert close(finite_time(z @ z.T, y, 1e6), solve(z @ z.T, y, 0.0))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 0.5, 1.0, 3.0, 1e3, 1e6])
def test_divided_differences_against_extended_precision(scale):
    """exp[0, x, y] by its definition in long double (64-bit mantissa), for gaps that leave it
    digits."""
    x = -scale * torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64)
    found = _second(x).numpy()
    for i, j in ((0, 1), (1, 2), (0, 2)):
        a, b = np.longdouble(x[i].item()), np.longdouble(x[j].item())
        expected = (np.expm1(a) / a - np.expm1(b) / b) / (a - b)
        assert abs(found[i, j] - expected) <= max(1e-9, 1e-18 / scale) * abs(expected)
    assert np.allclose(
        np.diag(_second(torch.zeros(3, dtype=torch.float64)).numpy()), 0.5, rtol=1e-15
    )


def test_nan_stays_nan(generator):
    assert finite_time(torch.full((2, 2), torch.nan), right_side(generator, n=2), 1.0).isnan().all()
    assert (
        finite_time(torch.full((2, 2), torch.nan), right_side(generator, n=2), 1.0, "pade22")
        .isnan()
        .all()
    )


@pytest.mark.parametrize("exponential", ["exact", "pade11", "pade22"])
def test_both_orders_of_vmap(exponential, generator):
    z = torch.stack([features(generator, copies=3), features(generator)])
    y = torch.stack([right_side(generator), right_side(generator)])

    def loss(z, y):
        return finite_time(z @ z.T, y, 2.0, exponential).square().sum()

    looped = torch.stack([grad(loss)(*pair) for pair in zip(z, y, strict=True)])
    assert close(vmap(grad(loss))(z, y), looped, 1e-12)
    assert close(grad(lambda z: vmap(loss)(z, y).sum())(z), looped, 1e-12)

"""PWCCA by the formula of another library, against an eigenproblem."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import anatome, reuse
from fsl_core.diagnosing.similarity import distances


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_by_an_eigenproblem(orthonormal):
    x = random(50, 4)
    y = x @ random(4, 4, seed=1) + 2 * random(50, 4, seed=2)
    found = anatome.pwcca(x, y, orthonormal)
    x, y = (part.numpy() - part.numpy().mean(0) for part in (x, y))
    product = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    squares, w = (part.real for part in np.linalg.eig(product))
    w = w[:, np.argsort(-squares)]
    w /= np.linalg.norm(x @ w, axis=0)
    if orthonormal:
        w = np.linalg.qr(w)[0]
    a = np.abs(x @ w).sum(0)
    assert found == pytest.approx(1 - a @ np.sqrt(sorted(squares)[::-1]) / a.sum(), abs=1e-10)


def test_only_that_formula_counts_rounding_errors():
    low = (random(100, 3) @ random(3, 20, seed=1)).float()
    moved = low + 1e-7 * random(100, 20, seed=2).float()
    assert anatome.pwcca(low, moved) > 0.2
    assert distances(low, moved)["pwcca"].value < 1e-6


def test_what_is_compared():
    setting = reuse.Setting(tasks=3)
    found = anatome.compared(reuse.trained(setting, 1), setting.source(), 0, episodes=2)
    layers, of, formulas = (set(part) for part in zip(*found, strict=True))
    assert layers == {"layers.0", "layers.1", "layers.2"}
    assert of == {anatome.ADAPTED, anatome.MOVED}
    assert formulas == {anatome.OURS, anatome.THERE, anatome.EARLIER}
    assert all(len(values) == 2 for values in found.values())
    text = anatome.table([found, found])
    assert text.count("\n") == 5
    rounded = anatome.over_layers(found, anatome.MOVED, anatome.THERE)
    assert rounded > anatome.over_layers(found, anatome.MOVED, anatome.OURS)

"""The page on step sizes: its numbers, and the stable logarithm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import step_sizes

PAGE = Path(__file__).parents[2] / "docs" / "results" / "step-sizes.md"


def test_the_page_is_what_the_script_writes():
    assert PAGE.read_text(encoding="utf-8") == step_sizes.page()


@pytest.mark.parametrize("rate", step_sizes.RATES)
def test_both_derivatives_are_those_of_autograd(rate: float):
    at = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    loss = (step_sizes.CURVATURES * (1 - at * step_sizes.CURVATURES) ** 20).sum() / 2
    (slope,) = torch.autograd.grad(loss, at, retain_graph=True)
    assert step_sizes.plain(rate, 10) == pytest.approx(slope.item(), rel=1e-12)
    torch.testing.assert_close(step_sizes.log_loss(at, 10), loss.log() / 10)
    (of_log,) = torch.autograd.grad(loss.log() / 10, at)
    assert step_sizes.of_log(rate, 10) == pytest.approx(of_log.item(), rel=1e-9)


@pytest.mark.parametrize("rate", step_sizes.RATES)
def test_the_logarithm_is_finite_in_float32_where_the_loss_is_not(rate: float):
    at = torch.tensor(rate, requires_grad=True)
    curvatures = step_sizes.CURVATURES.float()
    loss = (curvatures * (1 - at * curvatures) ** 800).sum() / 2
    assert not 0 < loss < torch.inf
    (slope,) = torch.autograd.grad(step_sizes.log_loss(at, 400, curvatures), at)
    assert slope.item() == pytest.approx(step_sizes.of_log(rate, 400), rel=1e-4)


def test_the_support_loss_tunes_worse_where_items_are_few():
    few, many = step_sizes.tuned(25), step_sizes.tuned(500)
    assert few["support"] > 1.3 * few["query"]
    assert many["support"] < 1.2 * many["query"]

"""The study of benchmarks/moml.py: its derivatives, its steps beside the package's, its page."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fsl_core as fsl
from benchmarks.moml import (
    METHODS,
    RECIPE,
    experiments,
    main,
    on_test_waves,
    over_seeds,
    told,
    train,
    verdict,
)
from benchmarks.waves import Fit, Method, Trainings, adapt
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.sinusoid import Grid, Sinusoid
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.testing import double_precision

HIDDEN = 6


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def network() -> nn.Module:
    layers = (nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 1))


def test_derivatives_are_those_of_autograd():
    nets = [network() for _ in range(3)]
    rows = torch.stack([parameters_to_vector(net.parameters()).detach() for net in nets])
    x, y, along = torch.randn(3, 4), torch.randn(3, 4), torch.randn_like(rows)
    fit = Fit(rows.numpy(), x.numpy(), y.numpy(), HIDDEN)
    shapes = {name: p.shape for name, p in nets[0].named_parameters()}

    def loss(row, i):
        parts = row.split([shape.numel() for shape in shapes.values()])
        weights = {n: v.view(shapes[n]) for n, v in zip(shapes, parts, strict=True)}
        out = torch.func.functional_call(nets[0], weights, x[i, :, None])
        return (out[:, 0] - y[i]).square().mean()

    for i in range(3):
        slope = torch.func.grad(loss)(rows[i], i)
        bent = torch.autograd.functional.vhp(lambda row, i=i: loss(row, i), rows[i], along[i])[1]
        assert fit.loss[i] == pytest.approx(loss(rows[i], i).item(), abs=1e-12)
        np.testing.assert_allclose(fit.gradient()[i], slope.numpy(), rtol=0, atol=1e-12)
        curved = fit.curved(along.numpy())[i]
        np.testing.assert_allclose(curved, bent.numpy(), rtol=0, atol=1e-12)


def learner_with(variant: str | None, source: Sinusoid, beta: float, order: int = 2) -> fsl.Learner:
    if absent := {"fsl-maml", "fsl-moml"} - {d.name for d in metadata.distributions()}:
        pytest.skip(f"{', '.join(sorted(absent))} is not installed")
    from fsl_maml import Maml
    from fsl_moml import Memory

    backbone = Mlp(source.task, hidden=(HIDDEN, HIDDEN))
    adapter = Maml(source.task, backbone, 0.1, inner_steps=1, test_steps=3, order=order)
    memory = Memory(source.task, 4, 3, variant=variant, beta=beta) if variant else None
    return fsl.Learner(backbone, adapter, memory)


def in_double(episode: fsl.Episode) -> fsl.Episode:
    support, query = (fsl.LabelledSet(s.x.double(), s.y.double()) for s in episode[:2])
    return fsl.Episode(support, query, episode.id)


@pytest.mark.parametrize(("n_shot", "order"), [(1, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("variant", [None, "v1", "v2"])
def test_steps_are_those_of_the_packages(variant, n_shot, order):
    size, rate, beta = 3, 0.05, 0.3
    source = Sinusoid(n_shot, n_shot, grid=Grid(amplitudes=2, phases=2), order="random")
    learner = learner_with(variant, source, beta, order)
    compute = MetaGradient(learner, Uniform(), source.task.loss)
    method = Method(rate, beta if variant else 1.0, variant == "v2")
    theta = parameters_to_vector(learner.parameters()).detach().numpy()[None].copy()
    rows = Trainings(theta, [method], 4, size, HIDDEN, inner_lr=0.1, order=order)
    for step in range(25):
        batch = in_double(source.batch("train", range(size * step, size * step + size), seed=3))
        compute(batch)
        moved = parameters_to_vector(p.detach() - rate * p.grad for p in learner.parameters())
        vector_to_parameters(moved, learner.parameters())
        learner.on_step(batch.id)
        points = torch.cat([*batch.support, *batch.query], dim=2).mT.numpy()
        rows.step(batch.id.numpy()[None], points[None])
        np.testing.assert_allclose(rows.theta[0], moved.numpy(), rtol=0, atol=1e-10)


def test_adaptation_is_the_adapters():
    source = Sinusoid(10, 7, grid=Grid(amplitudes=2, phases=2))
    learner = learner_with(None, source, 1.0).eval()
    episode = in_double(source.batch("test", [5], seed=0).unbatch()[0])
    expected = learner(episode.support, episode.query.x)
    theta = parameters_to_vector(learner.parameters()).detach().numpy()[None]
    x, y, asked_x, asked_y = (t.mT.numpy() for t in (*episode.support, *episode.query))
    adapted = adapt(theta, x, y, HIDDEN, inner_lr=0.1, steps=3)
    found = Fit(adapted, asked_x, asked_y, HIDDEN).loss[0]
    assert found == pytest.approx(source.task.loss(expected, episode.query.y).item(), abs=1e-12)


SHORT = ["--seeds", "2", "-s", "outer.steps=40", "-s", "evaluate.episodes=6"]


@pytest.fixture
def _single():
    with double_precision(torch.float32):
        yield


@pytest.mark.usefixtures("_single")
def test_a_study_goes_on_from_what_it_kept(tmp_path):
    if absent := {"fsl-maml", "fsl-moml"} - {d.name for d in metadata.distributions()}:
        pytest.skip(f"{', '.join(sorted(absent))} is not installed")
    whole = ["--runs", str(tmp_path / "whole"), "--out", str(tmp_path / "whole")]
    parted = ["--runs", str(tmp_path / "parted"), "--out", str(tmp_path / "parted")]
    main([*SHORT, *whole])
    main([*SHORT, *parted, "--until", "3"])
    text = (tmp_path / "parted" / "moml.md").read_text()
    assert "6 steps, of 40 in the protocol: the rate has not fallen yet. 2 seeds." in text
    main([*SHORT, *parted])
    text = (tmp_path / "whole" / "moml.md").read_text()
    assert (tmp_path / "parted" / "moml.md").read_text() == text
    assert "40 steps. 2 seeds. All figures are mean squared errors." in text
    assert text.count("| MOML V2 | ") == 3
    assert "## 6 waves never trained on" in text


def test_verdicts_are_about_losses():
    assert told(np.array([1.0, 1.0, 1.0])) == "1.000 ± 0.000"
    assert told(np.array([0.5]), "+") == "+0.500"
    assert verdict(np.array([-1.0, -1.1, -0.9])) == "better than MAML"
    assert verdict(np.array([1.0, 1.1, 0.9])) == "worse than MAML"
    assert verdict(np.array([-1.0, 1.1, 0.9])) == "no difference beyond the interval"
    assert verdict(np.array([-1.0, np.nan])) == "1 of 2 diverged"
    assert verdict(np.array([-1.0])) == "no difference beyond the interval"
    mean, half = over_seeds(np.array([1.0, 2.0, 4.0]))
    interval = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))


@pytest.mark.slow
@pytest.mark.usefixtures("_single")
def test_a_run_of_the_recipe_takes_the_same_steps(tmp_path):
    if absent := {"fsl-maml", "fsl-moml"} - {d.name for d in metadata.distributions()}:
        pytest.skip(f"{', '.join(sorted(absent))} is not installed")
    settings = ["outer.steps=40", "evaluate.episodes=6"]
    of = experiments(3, settings)
    rows = train(METHODS["MOML"], of, tmp_path / "moml.npz")
    ran = fsl.run(RECIPE, ["seed=2", *settings], device="cpu", progress=False)
    found = parameters_to_vector(ran.learner.parameters()).detach().numpy()
    np.testing.assert_allclose(rows[-1, 2], found, rtol=0, atol=1e-5)
    assert np.abs(rows[-1, 2] - rows[0, 2]).max() > 0.01
    mean = on_test_waves(rows[-1, 2:], of[2]).mean()
    assert ran.result["mse"] == pytest.approx(mean, rel=1e-4)

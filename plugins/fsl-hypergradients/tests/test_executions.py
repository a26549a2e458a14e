"""Every estimate under every execution it claims, and in the trial before a run."""

from functools import partial

import pytest
import torch

import fsl_core as fsl
from fsl_core.engine.choice import rules_out
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import meta_gradient
from fsl_core.testing import TinyBackbone, Uneven, tiny_episodes, tiny_task
from fsl_hypergradients import (
    FiniteDifference,
    GaussianSmoothing,
    Implicit,
    Reptile,
    Sgld,
    Truncated,
    fsl_register_hypergradients,
)
from fsl_maml import Maml

TASK = tiny_task()
MAKE = {
    "truncated": partial(Truncated, 1),
    "implicit": partial(Implicit, iterations=2, tolerance=0.01),
    "finite-difference": FiniteDifference,
    "gaussian-smoothing": partial(GaussianSmoothing, 2, redraw="per-step"),
    "reptile": partial(Reptile, inner_batch=4, adam_lr=0.01),
    "sgld": partial(Sgld, TASK, steps=3, burn_in=1),
    "sgld by covariance": partial(Sgld, TASK, "covariance", steps=3, burn_in=1, chains=2),
    "sgld, the whole chain": partial(Sgld, TASK, "pathwise", steps=2, burn_in=1),
}
COMPILED = {
    "implicit": partial(Implicit, iterations=1, tolerance=0.01),
    "reptile": partial(Reptile, inner_batch=4, adam_lr=0.01),
}
"""Few, because compiling takes seconds: products with second derivatives and a solver; draws.

The other estimates are made of the same parts, and `--fsl-compiled` compiles each of them.
"""


def computed(make, execution=Execution(), needs=frozenset(), inner_steps=2):
    torch.manual_seed(0)
    backbone = TinyBackbone("transductive")
    adapter = Maml(TASK, backbone, inner_steps=inner_steps, proximal=0.5)
    learner = fsl.Learner(backbone, adapter, make())
    learner.hypergradient.on_step(torch.arange(3))
    assert rules_out(execution, learner) is None
    result = meta_gradient(learner, Uneven(needs), tiny_episodes(TASK, 3), TASK.loss, execution)
    return torch.cat([p.grad.flatten() for p in learner.parameters()]), result.losses


@pytest.mark.parametrize("name", MAKE)
def test_every_execution_is_the_loop(name):
    expected, losses = computed(MAKE[name])
    assert expected.norm() > 1e-3
    for execution in (Execution("vmap"), Execution("vmap", chunk=2), Execution(workers=2)):
        found, its_losses = computed(MAKE[name], execution)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(its_losses, losses)
    found, _ = computed(MAKE[name], Execution("vmap"), frozenset({"gradients"}))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_what_would_be_compiled_is_the_loop(name, monkeypatch):
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    expected, _ = computed(COMPILED[name], inner_steps=1)
    found, _ = computed(COMPILED[name], Execution("compiled"), inner_steps=1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_all_are_registered():
    found = []
    fsl_register_hypergradients(found.append)
    assert {estimate.name for estimate in found} == {
        name.split(",")[0].split(" by")[0] for name in MAKE
    }

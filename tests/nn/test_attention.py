"""Second derivatives through attention, in every way that a task is computed; float64."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.backends import cuda
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.engine.execution import Execution
from fsl_core.nn.attention import plain_attention
from fsl_core.testing import GradientSteps, checks, tiny_episodes, tiny_task

TASK = tiny_task("classification")


pytestmark = pytest.mark.usefixtures("float64")


class Attention(nn.Module):
    """The rows of a picture attend to one another."""

    feature_dim = 4

    def __init__(self, kind: str, width: int = 4):
        super().__init__()
        self.kind, self.rows = kind, nn.Linear(5, width)
        self.layer = {
            "layer": lambda: nn.TransformerEncoderLayer(width, 2, 6, dropout=0.0, batch_first=True),
            "module": lambda: nn.MultiheadAttention(width, 2, batch_first=True),
            "function": lambda: nn.Linear(width, width),
        }[kind]()

    def forward(self, x):
        rows = self.rows(x[:, 0])
        if self.kind == "layer":
            return self.layer(rows).mean(1)
        if self.kind == "module":
            return self.layer(rows, rows, rows, need_weights=False)[0].mean(1)
        heads = self.layer(rows)[:, None]
        return F.scaled_dot_product_attention(heads, heads, heads).mean((1, 2))


def make_learner(kind: str, inner_steps: int = 2) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = Attention(kind)
    learner = fsl.Learner(backbone, GradientSteps(TASK, backbone, inner_steps))
    checks.leave_zeros(learner)
    return learner


def compute(learner, execution):
    return checks.meta_batch(learner, TASK.loss, execution, tiny_episodes(TASK, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["layer", "module", "function"])
def test_the_meta_gradient_is_the_slope(kind, training):
    learner, episode = make_learner(kind), tiny_episodes(TASK, 1).unbatch()[0]
    learner.backbone.train(training)  # torch has other kernels for evaluation

    def value():
        return learner.objective(episode, TASK.loss)[0]

    names, parameters = zip(*learner.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    wrong = checks.wrong_slopes(
        lambda: value().item(), learner, dict(zip(names, gradients, strict=True))
    )
    assert not wrong


@pytest.mark.parametrize(
    "execution", [Execution(workers=2), Execution("vmap"), Execution("vmap", chunk=2)], ids=str
)
@pytest.mark.parametrize("kind", ["module", "function"])
def test_every_execution_is_the_loop(kind, execution):
    learner = make_learner(kind)
    expected = compute(learner, Execution())
    assert not checks.differences(compute(learner, execution), expected)


@pytest.mark.usefixtures("traced_only")
def test_what_would_be_compiled_is_the_loop():
    learner = make_learner("function", inner_steps=1)
    expected = compute(learner, Execution())
    assert not checks.differences(compute(learner, Execution("compiled")), expected)


@pytest.mark.parametrize("kind", ["layer", "module", "function"])
def test_an_adapter_may_take_second_derivatives_in_evaluation(kind):
    class Curved(GradientSteps):
        def adapt(self, backbone, support):
            with torch.enable_grad():
                weights = list(backbone.parameters())
                loss = TASK.loss(self.head(backbone(support.x)), support.y)
                slope = torch.autograd.grad(loss, weights, create_graph=True)
                size = sum(part.square().sum() for part in slope)
                curvature = torch.autograd.grad(size, weights[0])[0].sum().detach()
            return lambda x: self.head(backbone(x)) + curvature

    backbone = Attention(kind)
    learner = fsl.Learner(backbone, Curved(TASK, backbone)).eval()
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    with torch.no_grad():
        assert learner.adapt(episode)(episode.query.x).isfinite().all()
        assert learner.trajectory(episode)[-1](episode.query.x).isfinite().all()


def test_the_fused_kernels_are_allowed_again_when_the_last_thread_leaves():
    cuda.enable_mem_efficient_sdp(False)  # as a user may have said
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with plain_attention():
            inside.set()
            leave.wait(timeout=600)
            seen.append(cuda.flash_sdp_enabled())

    try:
        thread = threading.Thread(target=other, daemon=True)
        with plain_attention(), plain_attention():
            thread.start()
            inside.wait()
        assert not cuda.flash_sdp_enabled()
        leave.set()
        thread.join()
        assert seen == [False]
        assert cuda.flash_sdp_enabled()
        assert not cuda.mem_efficient_sdp_enabled()
    finally:
        cuda.enable_mem_efficient_sdp(True)


def test_an_error_allows_them_again():
    with pytest.raises(ZeroDivisionError), plain_attention():
        _ = 1 / 0
    assert cuda.flash_sdp_enabled()

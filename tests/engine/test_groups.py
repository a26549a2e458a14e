"""Batches of several shapes: every execution gives the weighted sum of single tasks' gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.data.groups import unbatch
from fsl_core.engine.choice import Setting, choose, settle, why_not_vectorized
from fsl_core.engine.evaluation import evaluate
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.errors import PluginError, ShapeError
from fsl_core.hooks.loader import load
from fsl_core.testing import TinyBackbone, Uneven, checks, tiny_episodes, tiny_task
from fsl_core.testing.tiny import as_batch, unequal_episodes

TASK = tiny_task()
UNEQUAL = replace(TASK, varies=fsl.Varies(class_shots=True))
CATALOGUE = load().catalogue

pytestmark = pytest.mark.usefixtures("float64")


def builder(name: str) -> Callable[[fsl.TaskShape], fsl.Learner]:
    component = CATALOGUE.get("adapter", name)

    def build(task: fsl.TaskShape) -> fsl.Learner:
        torch.manual_seed(0)
        backbone = Conv4(task, channels=4, blocks=1)
        try:
            adapter = component.build(component.options(name=name), task=task, backbone=backbone)
        except PluginError as error:  # of a library that the plugin needs
            pytest.skip(str(error))
        return fsl.Learner(backbone, adapter)

    return build


def shapes_of(learner: fsl.Learner) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in learner.state_dict().items()}


def batch_for(build: Callable[[fsl.TaskShape], fsl.Learner]) -> list[fsl.Group]:
    """Groups of all shapes that one set of weights serves."""
    own = build(TASK)
    shapes = [TASK, tiny_task(n_shot=3), tiny_task(n_way=4), tiny_task(n_way=4, n_query=2)]
    served = [shape for shape in shapes if shapes_of(build(shape)) == shapes_of(own)]
    parts = [(shape, tiny_episodes(shape, 2, seed)) for seed, shape in enumerate(served)]
    if own.adapter.unequal_shots:
        for seed, shots in enumerate([(3, 1, 2), (1, 1, 4), (5, 1, 1)]):
            parts.append((UNEQUAL, unequal_episodes(TASK, 2, shots, seed + 10)))
    return as_batch(parts)


def fitting(name: str) -> tuple[Fitting, list[fsl.Group]]:
    build = builder(name)
    learner = build(TASK)
    checks.leave_zeros(learner)
    learner.train()
    fitted = Fitting(learner, TASK, build)
    fitted.on_progress(0.3)
    return fitted, batch_for(build)


def one_by_one(fitted: Fitting, groups: list[fsl.Group], build) -> dict[str, torch.Tensor]:
    """Each task by a learner of its own, built for its shape, that has loaded the weights."""
    losses, rows = [], []
    for shape, episode in unbatch(groups):
        own = build(shape)
        own.load_state_dict(fitted.learner.state_dict())
        own.train()
        own.adapter.on_progress(0.3)
        loss, _ = own.objective(episode, TASK.loss)
        found = torch.autograd.grad(loss, list(own.parameters()), allow_unused=True)
        pairs = zip(found, own.parameters(), strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
        losses.append(loss.detach())
    weights = torch.arange(1, len(rows) + 1) / 10
    matrix = torch.stack(rows)
    return {
        "losses": torch.stack(losses),
        "meta-gradient": weights.double() @ matrix,
        "meta-gradients of the tasks": matrix,
    }


@pytest.mark.parametrize("name", CATALOGUE.names("adapter"))
def test_every_execution_is_the_sum_of_single_tasks(name):
    fitted, groups = fitting(name)
    if len(groups) < 2:
        pytest.skip("weights for one number of ways and shots")
    expected = one_by_one(fitted, groups, builder(name))
    executions = [Execution(), *checks.executions(fitted.learner.adapter)]
    for execution in executions:
        if execution.mode == "loop" or why_not_vectorized(fitted.learner) is None:
            found = checks.meta_batch(
                fitted, TASK.loss, execution, groups, frozenset({"gradients"})
            )
            assert not checks.differences(found, expected), execution
            summed = checks.meta_batch(fitted, TASK.loss, execution, groups)
            del expected["meta-gradients of the tasks"]
            assert not checks.differences(summed, expected), execution
            expected["meta-gradients of the tasks"] = found["meta-gradients of the tasks"]


def test_who_takes_what():
    """So that the test above cannot pass by leaving everything out."""
    taken = {}
    for name in (
        "nearest-centroid",
        "ridge",
        "kernel-closed-form",
        "hypernet",
        "maml",
        "hypermaml",
    ):
        if name in CATALOGUE.names("adapter"):
            shapes = [group.task for group in fitting(name)[1]]
            taken[name] = (len({s.n_way for s in shapes}), any(s.varies for s in shapes))
    ways = {"nearest-centroid": 2, "ridge": 2, "kernel-closed-form": 2, "hypernet": 2}
    assert taken == {name: (ways.get(name, 1), True) for name in taken}


class Centroids(fsl.EpisodeSource):
    """Episodes of 3 or 4 ways, 2 or 3 shots."""

    name = "centroids"
    task = replace(tiny_task(n_way=4, n_shot=3), varies=fsl.Varies((3, 4), (2, 3)))

    def batch(self, split, indices, seed, task=None):
        episodes = [tiny_episodes(task or self.task, 1, 1000 + i).unbatch()[0] for i in indices]
        support, query = (
            fsl.LabelledSet(
                *(torch.stack(c) for c in zip(*(e[part] for e in episodes), strict=True))
            )
            for part in (0, 1)
        )
        return fsl.Episode(support, query, torch.tensor([*indices]))


def centroid(task: fsl.TaskShape) -> fsl.Learner:
    torch.manual_seed(0)
    return fsl.Learner(TinyBackbone(), NearestCentroid(task))


@torch.no_grad()
@pytest.mark.parametrize("workers", [1, 2])
def test_an_evaluation_judges_each_episode_by_the_learner_of_its_shape(workers):
    fitted = Fitting(centroid(Centroids.task), Centroids.task, centroid)
    found = evaluate(fitted, Centroids(), "test", 30, workers=workers)
    for i in range(30):
        ((shape, episode),) = unbatch(Centroids().groups("test", [i], 0))
        learner = centroid(shape).eval()
        prediction = learner(episode.support, episode.query.x)
        assert prediction.shape == (len(episode.query.x), shape.n_way)
        assert found.scores[i] == pytest.approx(float(shape.score(prediction, episode.query.y)))
        assert found.losses[i] == pytest.approx(float(shape.loss(prediction, episode.query.y)))
        assert found.sizes["n_way"][i] == shape.n_way
        assert found.sizes["n_shot"][i] == shape.n_shot
    assert set(found.sizes) == {"n_way", "n_shot"}
    assert set(found.sizes["n_way"]) == {3, 4}


def test_a_twin_follows_its_learner():
    """Weights that a step moves, buffers put in place of others, modes, progress."""

    class Counts(NearestCentroid):
        def __init__(self, task):
            super().__init__(task)
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("own", torch.arange(task.n_way), persistent=False)
            self.told = 0.0

            self.times = 0

        def on_progress(self, progress):
            self.told = progress
            self.times += 1

    def build(task):
        return fsl.Learner(TinyBackbone(), Counts(task))

    learner = build(TASK)
    fitted = Fitting(learner, TASK, build)
    state = torch.get_rng_state()
    twin = fitted(tiny_task(n_way=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert twin is not learner
    assert twin is fitted(tiny_task(n_way=4, n_shot=5)), "it takes unequal shots, so any number"
    assert fitted(tiny_task(n_shot=5)) is learner
    learner.adapter.count = torch.ones(())
    learner.eval()
    fitted.on_progress(0.5)
    assert fitted(tiny_task(n_way=4)).adapter.count is learner.adapter.count
    assert not twin.adapter.training
    assert twin.adapter.told == learner.adapter.told == 0.5
    assert fitted(tiny_task(n_way=4)).adapter.times == 1  # threads may be computing with it
    assert len(twin.adapter.own) == 4
    pairs = zip(twin.parameters(), learner.parameters(), strict=True)
    assert all(own is other for own, other in pairs)


def test_a_learner_that_cannot_be_built_again_is_refused_other_ways():
    fitted = Fitting(centroid(TASK), TASK)
    assert fitted(tiny_task(n_shot=5)) is fitted.learner
    with pytest.raises(
        ShapeError, match=r"'nearest-centroid': this learner was made for 3-way.*4-way"
    ):
        fitted(tiny_task(n_way=4))


def setting() -> Setting:
    learner = centroid(Centroids.task)
    rule = Fitting(learner, Centroids.task, centroid)
    groups = Centroids().groups("train", range(4), 0)
    return Setting(learner, Uniform(), groups, TASK.loss, rule=rule)


def test_compiled_falls_back_with_the_reason():
    choice = settle(Execution("compiled"), setting())
    assert choice.execution == Execution("vmap")
    assert choice.reason == (
        "vmap instead of compiled: episodes have several shapes, and each would be compiled by "
        "itself"
    )
    assert settle(Execution("vmap", chunk=2), setting()).execution == Execution("vmap", chunk=2)


def test_the_choice_is_measured_on_groups(monkeypatch):
    monkeypatch.setattr("fsl_core.engine.choice.COMPILE_SECONDS", 0.0)
    choice = choose(Execution(), setting(), steps=10**9, measure_workers=True)
    assert choice.seconds
    assert not any("compiled" in name for name in choice.seconds)


def test_weights_see_the_losses_in_the_order_of_the_episodes():
    fitted = Fitting(centroid(Centroids.task), Centroids.task, centroid)
    groups = Centroids().groups("train", range(7, 19), 0)
    assert len(groups) > 2
    seen = []

    class Watching(Uneven):
        def weigh(self, outcomes):
            seen.append(outcomes)
            return super().weigh(outcomes)

    for execution in (Execution(), Execution("vmap"), Execution("vmap", chunk=2)):
        result = MetaGradient(fitted, Watching(frozenset({"gradients"})), TASK.loss, execution)(
            groups
        )
        assert seen[-1].ids.tolist() == list(range(7, 19))
        for i, (shape, episode) in enumerate(unbatch(groups)):
            learner = fitted(shape)
            loss, prediction = learner.objective(episode, TASK.loss)
            row = torch.autograd.grad(loss, list(learner.parameters()), allow_unused=True)
            flat = torch.cat([g.flatten() for g in row if g is not None])
            assert torch.allclose(seen[-1].losses[i], loss, rtol=0, atol=1e-12)
            assert torch.allclose(seen[-1].gradients[i], flat, rtol=0, atol=1e-12)
            assert torch.allclose(result.predictions[i], prediction, rtol=0, atol=1e-12)


def test_copies_do_not_share_twins():
    learner = centroid(Centroids.task)
    fitted = Fitting(learner, Centroids.task, centroid)
    other = fitted.of(copy.deepcopy(learner))
    shape = tiny_task(n_way=3)
    assert isinstance(fitted(shape).backbone, nn.Module)
    assert next(other(shape).parameters()) is next(other.learner.parameters())
    assert next(other(shape).parameters()) is not next(fitted(shape).parameters())

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.engine.evaluation import Evaluation, evaluate, mean_and_interval
from fsl_core.hooks.loader import Loaded


class Steps(fsl.Adapter):
    """Knows nothing at first, the classes after one step, and is sure after two."""

    name = "steps"

    def __init__(self, n_way: int):
        super().__init__()
        self.n_way, self.adapted = n_way, 0

    def adapt(self, backbone, support):
        self.adapted += 1
        return self.trajectory(backbone, support)[-1]

    def trajectory(self, backbone, support):
        means = torch.stack([support.x[support.y == c].mean(0) for c in range(self.n_way)])
        return [lambda x, scale=scale: -scale * torch.cdist(x, means) for scale in (0.0, 1.0, 10.0)]


def judged(loaded: Loaded, **options: object):
    source = loaded.catalogue.get("episodes", "blobs").factory(n_way=3)
    return evaluate(fsl.Learner(nn.Identity(), Steps(3)), source, "test", 25, **options)


def test_the_interval_is_that_of_the_mean_over_episodes():
    mean, interval = mean_and_interval([0.0, 1.0, 1.0, 0.0])
    assert mean == 0.5
    assert interval == pytest.approx(1.96 * (1 / 3) ** 0.5 / 2)


def test_scores_before_adaptation_and_after_each_step(toy_plugins: Loaded):
    evaluation = judged(toy_plugins)
    summary = evaluation.summary()
    assert len(evaluation.after_steps) == 3
    assert summary["accuracy_after_0"] == pytest.approx(
        1 / 3
    )  # all logits equal: class 0 is answered
    assert summary["accuracy_after_1"] == summary["accuracy_after_2"] == summary["accuracy"] > 0.8
    assert summary["episodes"] == 25


def test_without_each_step_the_scores_are_the_same(toy_plugins: Loaded):
    full, quick = judged(toy_plugins), judged(toy_plugins, each_step=False)
    assert quick.scores == full.scores
    assert quick.losses == full.losses
    assert quick.after_steps == []
    assert quick.episode_set == full.episode_set


def test_the_hash_tells_episode_sets_apart(toy_plugins: Loaded):
    shape = fsl.TaskShape("classification", 3, 2, 5, (2,), 3)
    sets = {
        judged(toy_plugins, **options).episode_set
        for options in ({}, {"seed": 1}, {"task": shape}, {})
    }
    assert len(sets) == 3


def test_every_episode_is_counted(toy_plugins: Loaded):
    seen = []
    judged(toy_plugins, on_episode=lambda: seen.append(1))
    assert len(seen) == 25


def test_evaluation_leaves_no_gradient_and_sets_evaluation_mode(
    toy_plugins: Loaded, toy_recipe: Path
):
    source = toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3)
    learner = fsl.Learner(nn.Linear(2, 2), Steps(3)).train()
    evaluate(learner, source, "test", 3)
    assert not learner.training
    assert learner.backbone.weight.grad is None


@pytest.mark.parametrize(("metric", "worse", "better"), [("accuracy", 0.4, 0.6), ("mse", 0.6, 0.4)])
def test_better_is_higher_accuracy_or_lower_error(metric: str, worse: float, better: float):
    evaluation = Evaluation(metric, [0.25, 0.75], [1.0, 1.0], [], "0", 1.0)
    assert evaluation.better_than(None)
    assert evaluation.better_than(worse)
    assert not evaluation.better_than(0.5)
    assert not evaluation.better_than(better)


class Lost(Steps):
    """Predicts nothing that is a number."""

    def trajectory(self, backbone, support):
        return [lambda x: torch.full((len(x), self.n_way), torch.nan)]


class Overflows(Steps):
    """Its first and its last predictions are as large as `first` and `last`."""

    def __init__(self, n_way: int, first: float = 0.0, last: float = 0.0):
        super().__init__(n_way)
        self.sizes = (first, last)

    def trajectory(self, backbone, support):
        return [lambda x, size=size: torch.full((len(x), 1), size) for size in self.sizes]


def test_a_loss_that_is_not_a_number_is_refused(toy_plugins: Loaded):
    source = toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3)
    message = r"evaluation, test episode 0: the loss is nan\. Finite items and weights"
    with pytest.raises(fsl.RunError, match=message):
        evaluate(fsl.Learner(nn.Identity(), Lost(3)), source, "test", 5)


@pytest.mark.parametrize(
    ("sizes", "found"),
    [((0.0, 1e30), "the loss is inf"), ((1e30, 0.0), "the score after 0 inner steps is inf")],
)
def test_what_overflows_is_refused(toy_plugins: Loaded, sizes: tuple, found: str):
    """Squares of 1e30 are beyond float32; means and JSON of infinity would be of no use."""

    class Values(type(toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3))):
        def _episode(self, split, index, seed, task):
            (x, _), (query_x, _), index = super()._episode(split, index, seed, self.task)
            values = fsl.LabelledSet(x, x[:, :1]), fsl.LabelledSet(query_x, query_x[:, :1])
            return fsl.Episode(*values, index)

    source = Values(n_way=3)
    task = fsl.TaskShape("regression", 1, 6, 12, (2,), 1)
    message = rf"^evaluation, test episode 0: {found}\. Finite items and weights; smaller steps"
    with pytest.raises(fsl.RunError, match=message):
        evaluate(fsl.Learner(nn.Identity(), Overflows(3, *sizes)), source, "test", 3, task=task)


class Numbered(fsl.Adapter):
    """Its predictors say how many tasks came before, or draw random numbers."""

    name = "numbered"

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.register_buffer("tasks", torch.zeros(()))

    def adapt(self, backbone, support):
        before = self.tasks.clone()
        if self.how == "buffer":
            self.tasks += 1
        if self.how == "random":
            return lambda x: torch.rand(len(x), 3)
        return lambda x: before + x.new_tensor([[0.0, 0.1, 0.2]]) * x.sum(1, keepdim=True)


@pytest.mark.parametrize("how", ["buffer", "random", "nothing"])
def test_workers_do_not_change_what_is_predicted(toy_plugins: Loaded, how: str):
    source = toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3)
    found = []
    for workers in (1, 3):
        learner = fsl.Learner(nn.Identity(), Numbered(how))
        evaluation = evaluate(learner, source, "test", 25, workers=workers)
        found.append((evaluation.losses, learner.adapter.tasks))
    assert found[0] == found[1]

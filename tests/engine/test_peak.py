"""How much a meta-batch holds, and how many tasks at a time fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine import peak
from fsl_core.engine.choice import Setting
from fsl_core.engine.execution import Execution
from fsl_core.engine.peak import fitting_chunk, memory_of, peak_of, peak_of_meta_batch
from fsl_core.testing import GradientSteps, TinyBackbone, tiny_episodes, tiny_task

NUMBER = 4
"""Bytes of a float32."""

TASK = tiny_task("classification")


def test_what_is_held_at_once_counts_and_what_was_freed_does_not():
    given = torch.ones(1000)

    def work() -> None:
        first = given * 2
        second = first + 1  # two are held
        del first
        third = second.view(10, 100).exp()  # a view holds nothing; two again
        third.add_(1)
        del second, third
        given.exp_()

    assert peak_of(work) == 2 * 1000 * NUMBER


def test_what_autograd_keeps_counts():
    x = torch.ones(1000, requires_grad=True)
    assert peak_of(lambda: x.exp().exp().sum().backward()) >= 3 * 1000 * NUMBER


@pytest.fixture
def setting() -> Setting:
    backbone = TinyBackbone("transductive")
    learner = fsl.Learner(backbone, GradientSteps(TASK, backbone))
    return Setting(learner, Uniform(), tiny_episodes(TASK, 6), TASK.loss)


def test_a_batch_of_tasks_grows_by_the_same_for_each(setting: Setting):
    whole, three, two = (
        peak_of_meta_batch(setting, Execution("vmap", chunk=chunk)) for chunk in (None, 3, 2)
    )
    assert whole - three == 3 * (three - two) > 0
    # What is foreseen from one task and two is what six hold.
    assert whole == pytest.approx(peak._peak(setting, Execution("vmap"), 6), rel=0.1)


def test_one_task_after_another_holds_one(setting: Setting):
    alone = peak_of_meta_batch(setting, Execution("loop"))
    three = peak_of_meta_batch(setting, Execution("loop", workers=3))
    assert alone < three < peak_of_meta_batch(setting, Execution("vmap"))


def test_as_many_tasks_as_fit_are_batched(setting: Setting):
    vmap = Execution("vmap")
    enough = peak_of_meta_batch(setting, replace(vmap, chunk=4))
    assert fitting_chunk(setting, vmap, enough) == 4
    assert fitting_chunk(setting, vmap, enough - 1) == 3
    assert fitting_chunk(setting, vmap, 1) == 1  # less than one cannot be
    assert fitting_chunk(setting, vmap, peak_of_meta_batch(setting, vmap)) is None


def test_the_memory_of_a_container_is_what_it_may_take(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(peak, "_LIMITS", ())
    whole = memory_of(torch.device("cpu"))
    assert whole is not None
    limits = [tmp_path / name for name in ("told", "unlimited", "absent")]
    limits[0].write_text("1048576\n")
    limits[1].write_text("max\n")
    monkeypatch.setattr(peak, "_LIMITS", tuple(map(str, limits)))
    assert memory_of(torch.device("cpu")) == 1048576 < whole

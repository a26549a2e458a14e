"""Threads that take whole tasks: they never wait for one another for ever."""

from __future__ import annotations

import subprocess
import sys

import torch

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.engine.workers import Workers, gradient_nodes
from fsl_core.testing import TinyBackbone, tiny_task

SHARED = """
import sys
import threading
import time

import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import MetaGradient

sys.setswitchinterval(1e-6)  # threads change places at nearly every step of the interpreter
torch.set_num_threads(1)
wakes = lambda: [time.sleep(0.001) for _ in iter(int, 1)]  # a third one that wants the interpreter
threading.Thread(target=wakes, daemon=True).start()
task = fsl.TaskShape("classification", 3, 2, 2, (1, 16, 16), 3)
x, y = torch.randn(4, 6, 1, 16, 16), torch.arange(3).repeat_interleave(2).repeat(4, 1)
episodes = fsl.Episode(fsl.LabelledSet(x, y), fsl.LabelledSet(x, y), torch.arange(4))
for _ in range(8):
    learner = fsl.Learner(Conv4(task, channels=4), NearestCentroid(task))
    compute = MetaGradient(learner, Uniform(), task.loss, Execution(workers=2))
    for _ in range(20):
        compute(episodes)
"""


def test_threads_that_share_weights_do_not_wait_for_ever():
    # Without `gradient_nodes` one of three such runs stood still, and a longer one every time. A
    # lock of torch and that of the interpreter are then held by the thread that waits for the other.
    subprocess.run([sys.executable, "-c", SHARED], check=True, timeout=600)


def test_what_requires_no_gradient_needs_no_node():
    task = tiny_task()
    learner = fsl.Learner(TinyBackbone(), NearestCentroid(task))
    trained = [p for p in learner.parameters() if p.requires_grad]
    with torch.no_grad():
        nodes = gradient_nodes(learner)
    assert len(nodes) == len(trained) > 0
    assert all(node.requires_grad for node in nodes)
    assert gradient_nodes(learner.requires_grad_(False)) == []


def test_processes_share_workers_and_each_task_has_one_core():
    learner = fsl.Learner(TinyBackbone(), NearestCentroid(tiny_task()))
    for count, sharing, own in ((4, 1, 4), (4, 2, 2), (5, 2, 3), (2, 2, 1), (2, 3, 1), (1, 2, 1)):
        workers = Workers(learner, count, sharing)
        (threads,) = workers.map(lambda learner, item: torch.get_num_threads(), [None])
        assert (workers.count, threads) == (own, 1 if count > 1 else torch.get_num_threads())

"""How much time adaptation saves by moving fewer layers of Conv4-64.

    nice -n -10 python -m benchmarks.patterns

Prints a table; weights are those before training, on which the time does not depend.
"""

from __future__ import annotations

import time
from statistics import median

import torch

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_maml import Maml

EPISODES, SHAPES = (
    15,
    {
        "28x28, 1 shot": ((1, 28, 28), 1),
        "28x28, 5 shots": ((1, 28, 28), 5),
        "84x84, 1 shot": ((3, 84, 84), 1),
    },
)
PATTERNS: dict[str, str | list[str]] = {
    "all": "all",
    "blocks 3 and 4, head": ["backbone.blocks.2.*", "backbone.blocks.3.*", "head.*"],
    "blocks 3 and 4": ["backbone.blocks.2.*", "backbone.blocks.3.*"],
    "block 4, head": ["backbone.blocks.3.*", "head.*"],
    "head": "head",
}


def learners(task: fsl.TaskShape) -> dict[str, fsl.Learner]:
    """The same network with each pattern for evaluation."""
    torch.manual_seed(0)
    backbone = Conv4(task)
    made = {name: Maml(task, backbone, test_adapted=pattern) for name, pattern in PATTERNS.items()}
    return {name: fsl.Learner(backbone, adapter).eval() for name, adapter in made.items()}


def seconds(task: fsl.TaskShape, episodes: int = EPISODES) -> dict[str, list[float]]:
    """Times to adapt, all patterns in turn on each episode."""
    found: dict[str, list[float]] = {name: [] for name in PATTERNS}
    made = learners(task)
    for _ in range(episodes + 1):
        episode = _episode(task)
        for name, learner in made.items():
            started = time.perf_counter()
            with torch.no_grad():
                learner.adapt(episode)
            found[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in found.items()}  # the first call sets things up


def _episode(task: fsl.TaskShape) -> fsl.Episode:
    labels = torch.arange(task.n_way).repeat_interleave(task.n_shot)
    support = fsl.LabelledSet(torch.randn(len(labels), *task.input_shape), labels)
    query = fsl.LabelledSet(torch.randn(task.n_way, *task.input_shape), torch.arange(task.n_way))
    return fsl.Episode(support, query, torch.tensor(0))


def table() -> str:
    """Medians, and how many times faster than with all layers, paired."""
    rows = ["| | " + " | ".join(PATTERNS) + " |", "|" + "---|" * (len(PATTERNS) + 1)]
    for name, (shape, shots) in SHAPES.items():
        task = fsl.TaskShape("classification", 5, shots, 1, shape, 5)
        found = seconds(task)
        cells = [
            f"{1000 * median(times):.1f} ms, {median(a / b for a, b in pairs):.2f} times"
            for times in found.values()
            for pairs in [list(zip(found["all"], times, strict=True))]
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())

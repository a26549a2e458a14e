"""What a task weighting adds to a meta-gradient."""

from __future__ import annotations

import torch

from benchmarks import ours, problems
from benchmarks.race import LeftOut, Work, race, ratio
from benchmarks.settings import Settings


def weightings(settings: Settings) -> dict:
    """One meta-gradient by every installed weighting: MAML, Conv4-64, 16 tasks, 1 step.

    28x28, 5-way 1-shot 15-query.
    """
    sizes = {"tasks": 3, "channels": 4, "n_query": 2} if settings.quick else {"tasks": 16}
    problem = problems.omniglot(**sizes).to(torch.float32)
    execution: ours.Name = "workers" if torch.get_num_threads() > 1 else "loop"
    entered: dict[str, Work] = {}
    left_out: dict[str, str] = {}
    for name in ours.loaded().catalogue.names("weighting"):
        try:
            entered[name] = ours.prepare(
                problem.learner, problem.episodes, problem.loss, execution, name
            )
        except LeftOut as reason:
            left_out[name] = str(reason)
    seconds = race(entered, settings.budget, settings.rounds, settings.block)
    rows = {name: list(vars(ratio(s, seconds["uniform"])).values()) for name, s in seconds.items()}
    return {
        "weightings": rows,
        "execution": execution,
        "left_out": left_out,
        "rounds": len(seconds["uniform"]),
    }

"""How the cost of one meta-gradient grows with the meta-batch, inner steps, ways and channels."""

from __future__ import annotations

from statistics import median

from benchmarks import ours, problems
from benchmarks.contenders import contenders
from benchmarks.race import exponent, race
from benchmarks.settings import Settings

START = {"tasks": 4, "steps": 1, "n_way": 5, "channels": 32, "n_query": 5}
AXES = {
    "tasks": ("meta-batch size", (1, 2, 4, 8, 16)),
    "steps": ("inner steps", (1, 2, 4, 8)),
    "n_way": ("ways", (2, 5, 10, 20)),
    "channels": ("channels", (16, 32, 64, 128)),
}
ENTERED = ("ours", "learn2learn")


def growth(settings: Settings) -> dict:
    """Second-order MAML on Conv4-32, 4 tasks, 1 step, with one size at a time changed.

    28x28, 5-way 1-shot 5-query.
    """
    start = START | ({"channels": 4, "tasks": 2, "n_query": 1} if settings.quick else {})
    axes: dict[str, dict] = {}
    for key, (label, all_sizes) in list(AXES.items())[: 1 if settings.quick else None]:
        sizes = all_sizes[:2] if settings.quick else all_sizes
        costs: dict[str, list[float]] = {}
        for size in sizes:
            for name, seconds in _costs(start | {key: size}, settings).items():
                costs.setdefault(name, []).append(seconds)
        fitted = {name: exponent(sizes, seconds) for name, seconds in costs.items()}
        axes[key] = {"label": label, "sizes": list(sizes), "seconds": costs, "exponents": fitted}
    left_out = {
        f"ours, {execution}": "takes a minute to start for each size" for execution in _slow()
    }
    return {"axes": axes, "start": start, "left_out": left_out}


def _slow() -> list[str]:
    return [execution for execution in ours.EXECUTIONS if execution in ours.SLOW_TO_START]


def _costs(sizes: dict, settings: Settings) -> dict[str, float]:
    entered, _ = contenders(problems.omniglot(**sizes), slow_to_start=False)
    entered = {name: work for name, work in entered.items() if name.split(",")[0] in ENTERED}
    seconds = race(entered, settings.budget / 20, (settings.rounds[0], 20), settings.block)
    return {name: median(s) for name, s in seconds.items()}

"""Side-by-side timing: interleaved rounds, medians, and ratios with their spread."""

from __future__ import annotations

import gc
import math
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

Work = Callable[[], object]


class LeftOut(Exception):  # noqa: N818 - a result, not a fault
    """Why a contender does not take part."""


class Disagreement(Exception):  # noqa: N818
    """Two contenders computed different numbers, so their times must not be compared."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other one takes; no unit.

    The median over rounds, and its 95 % bootstrap interval.
    """

    value: float
    low: float
    high: float


def race(
    contenders: Mapping[str, Work],
    budget: float,
    rounds: tuple[int, int] = (5, 200),
    block: float = 0.2,
) -> dict[str, list[float]]:
    """Seconds a call, one figure for each round: {name: [...]}.

    In a round each contender runs once, for as many calls as fill `block` seconds; who starts moves
    on by one each round. So whatever else the machine does falls on all alike. Garbage collection
    is off while the clock runs.

    budget: seconds for all rounds together.
    rounds: the least and the largest number of rounds.
    """
    calls = {name: _calls(work, block) for name, work in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order, started = list(contenders), time.perf_counter()
    while len(seconds[order[0]]) < rounds[0] or time.perf_counter() - started < budget:
        gc.collect()
        for name in order:
            seconds[name].append(_timed(contenders[name], calls[name]))
        order = order[1:] + order[:1]
        if len(seconds[order[0]]) >= rounds[1]:
            break
    return seconds


def ratio(other: list[float], own: list[float], resamples: int = 2000) -> Ratio:
    """The paired ratios other / own of each round: their median and its interval.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Ratio(value=2.0, low=2.0, high=2.0)
    """
    paired = np.array(other) / np.array(own)
    drawn = np.random.default_rng(0).integers(len(paired), size=(resamples, len(paired)))
    low, high = np.quantile(np.median(paired[drawn], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(paired)), float(low), float(high))


def fastest(seconds: Mapping[str, list[float]]) -> str:
    """The name with the least median."""
    return min(seconds, key=lambda name: median(seconds[name]))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope p of log(seconds) over log(size) by least squares: cost grows as size ** p.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def difference(gradient: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference of any element, in units of the largest element of the reference."""
    if [g.shape for g in gradient] != [r.shape for r in reference]:
        return math.inf
    scale = max(float(r.abs().max()) for r in reference)
    furthest = max(float((g - r).abs().max()) for g, r in zip(gradient, reference, strict=True))
    return furthest / scale if math.isfinite(furthest) else math.inf


def check_agreement(gradients: Mapping[str, list[Tensor]], limit: float) -> dict[str, float]:
    """`difference` of each to the first. Disagreement names those above the limit."""
    names = list(gradients)
    found = {name: difference(gradients[name], gradients[names[0]]) for name in names[1:]}
    wrong = {name: value for name, value in found.items() if not value <= limit}
    if wrong:
        listed = ", ".join(f"{name} by {value:.1e}" for name, value in wrong.items())
        raise Disagreement(
            f"meta-gradients differ from those of {names[0]}: {listed}. At most {limit:.0e}"
        )
    return found


def _calls(work: Work, block: float) -> int:
    work()
    once = min(_timed(work, 1) for _ in range(2))
    return max(1, math.ceil(block / once))


def _timed(work: Work, calls: int) -> float:
    if hasattr(work, "timed"):  # in a process of its own
        return work.timed(calls)

    def finished() -> None:
        work()
        torch.cuda.synchronize()

    return timeit.timeit(finished if torch.cuda.is_available() else work, number=calls) / calls

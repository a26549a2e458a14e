"""Which parameters each inner step adapts."""

from __future__ import annotations

Adapted = str | list[str] | list[list[str]]
"""A pattern, several, or a list of several for each step.

`all`, `head` and `body` are patterns too.
"""


def pattern_schedule(adapted: Adapted, steps: int) -> list[list[str]]:
    """The patterns of each listed step; one entry if all steps are alike.

    steps: how many are made at most. Raises ValueError if more are listed.
    """
    schedule = _as_schedule(adapted)
    if len(schedule) > max(steps, 1):
        raise ValueError(
            f"adapted: lists for {len(schedule)} steps. At most {steps}, as many as there are "
            "inner steps"
        )
    return schedule


def _as_schedule(adapted: Adapted) -> list[list[str]]:
    if isinstance(adapted, str):
        return [[adapted]]
    patterns = [entry for entry in adapted if isinstance(entry, str)]
    if len(patterns) == len(adapted):
        return [patterns]
    return [[entry] if isinstance(entry, str) else list(entry) for entry in adapted]

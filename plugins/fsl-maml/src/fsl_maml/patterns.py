"""Which parameters each inner step adapts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Adapted = str | list[str] | list[list[str]]
"""A pattern, several, or a list of several for each step.

`all`, `head` and `body` are patterns too.
"""


def pattern_schedule(adapted: Adapted, steps: int, option: str = "adapted") -> list[list[str]]:
    """The patterns of each listed step; one entry if all steps are alike.

    steps: how many are made at most. option: of the recipe, for messages. Raises ValueError if more
    are listed.
    """
    schedule = _as_schedule(adapted)
    if len(schedule) > max(steps, 1):
        raise ValueError(
            f"{option}: lists for {len(schedule)} steps. At most {steps}, as many as there are "
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


def refuse_untrained(schedule: Iterable[Sequence[str]], trained: Sequence[str]) -> None:
    """Raise ValueError if evaluation moves a weight that training does not: it has no rate."""
    moved = [name for names in schedule for name in names if name not in trained]
    if moved:
        raise ValueError(
            f"test_adapted: {moved[0]}, which training does not adapt. "
            f"Patterns of {', '.join(trained)}"
        )

"""Which parameters the inner loop adapts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

WORDS = {"all": "*", "head": "head.*", "body": "backbone.*"}

Adapted = str | list[str] | list[list[str]]
"""A pattern, several, or a list of several for each step; `all`, `head` and `body` are patterns too."""


def adapted_names(
    adapted: Adapted, names: Sequence[str], steps: int, frozen: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """For each listed step the matching names, in the order of `names`; one entry if steps are alike.

    names: of all parameters, such as `backbone.blocks.0.weight` and `head.bias`.
    steps: the most that will be made.    frozen: names that are left out.
    Raises ValueError if a pattern matches nothing, a list is empty or names frozen parameters alone,
    or more steps are listed than made.
    """
    schedule = _as_schedule(adapted)
    if len(schedule) > max(steps, 1):
        raise ValueError(
            f"adapted: lists for {len(schedule)} steps. At most {steps}, as many as there are inner steps"
        )
    return [_matching(patterns, names, frozen) for patterns in schedule]


def _as_schedule(adapted: Adapted) -> list[list[str]]:
    if isinstance(adapted, str):
        return [[adapted]]
    if all(isinstance(entry, str) for entry in adapted):
        return [list(adapted)]
    return [[entry] if isinstance(entry, str) else list(entry) for entry in adapted]


def _matching(
    patterns: list[str], names: Sequence[str], frozen: Collection[str]
) -> tuple[str, ...]:
    patterns = [WORDS.get(pattern, pattern) for pattern in patterns]
    idle = [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if idle or not patterns:
        found = f"{', '.join(map(repr, idle))} matches no parameter" if idle else "an empty list"
        raise ValueError(
            f"adapted: {found}. {', '.join(WORDS)}, or patterns over {', '.join(names)}"
        )
    matching = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    moved = tuple(name for name in matching if name not in frozen)
    if not moved:
        raise ValueError(
            f"adapted: {', '.join(map(repr, patterns))} matches frozen parameters alone, "
            f"{', '.join(matching)}. adapt_frozen: true, or patterns of others"
        )
    return moved

"""What constructors refuse."""

from __future__ import annotations

from typing import Any, get_args


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def require_choice(adapter: str, option: str, value: Any, choices: Any) -> None:
    known = get_args(choices)
    require(value in known, f"{adapter}: {option}: {value!r}. One of {', '.join(known)}")

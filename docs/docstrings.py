"""Docstrings as Markdown: griffe calls this while the Python reference is built.

Ours explain arguments in lines of `name: meaning`, which are easy to read in a terminal, and which
Markdown would run together.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_NAMED = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): +(\S.*)")


class NamedLines(Extension):
    """Every docstring of the reference through `as_list`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """Lines of `name: meaning`, with the lines that continue them, as the items of a list."""
    lines: list[str] = []
    within = False
    for line in text.splitlines():
        named = _NAMED.fullmatch(line)
        continued = within and line.startswith("  ")
        if (bool(named) or continued) != within and lines and lines[-1] and line:
            lines.append("")
        if named:
            names = ", ".join(f"`{name}`" for name in named[1].split(", "))
            lines.append(f"- {names}: {named[2]}")
        else:
            lines.append(f"  {line.strip()}" if continued else line)
        within = bool(named) or continued
    return "\n".join(lines)

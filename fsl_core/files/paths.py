"""What callers may give where a file or folder is meant."""

import re
from pathlib import Path

AnyPath = str | Path


def store_and_address(run: AnyPath) -> tuple[str, str]:
    """`hf` and `user/name` of hf:user/name; two empty texts for a path of this machine.

    >>> store_and_address("hf:user/name"), store_and_address("runs/first")
    (('hf', 'user/name'), ('', ''))
    """
    named = re.fullmatch(r"([a-z][a-z0-9-]+):(.+)", str(run))
    return (named[1], named[2]) if named and not Path(run).exists() else ("", "")

"""What a run took for what, as its report shows it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from fsl_core.engine.confusion import Counts, per_class
from fsl_core.errors import RunError
from fsl_core.runs.files import CONFUSION, RESULT, is_file, reading

SHOWN = 10
"""Classes and pairs in the lists."""
WHOLE = 30
"""Classes of a matrix that is shown, at most."""


def read_confusion(directory: Path) -> Counts:
    """What confusion.csv of a run holds; nothing if its classes have no names.

    Raises RunError if it is damaged.
    """
    path, counts = directory / CONFUSION, Counter[tuple[str, str]]()
    if not is_file(path):
        return counts
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text)):
            counts[row["class"], row["predicted"]] += int(row["count"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{path}: no table of classes. Delete {directory / RESULT}: "
            f"`fsl resume {directory}` writes all results again"
        ) from error
    return counts


def confusion_of(directory: Path) -> dict[str, Any]:
    """What a report shows of a run's classes; empty without counts.

    lowest: (class, queries, share right) of those with the lowest shares.
    pairs:  (class, predicted, count) of what was mistaken most often.
    matrix: (class, counts in the order of the classes, share right); empty if they are too many.
    """
    counts = read_confusion(directory)
    if not counts:
        return {}
    shares = {name: (row["queries"], row["right"]) for name, row in per_class(counts).items()}
    lowest = sorted(shares.items(), key=lambda item: (item[1][1], item[0]))
    mistakes = [(*pair, n) for pair, n in counts.items() if pair[0] != pair[1]]
    columns = list(shares) if len(shares) <= WHOLE else []
    return {
        "classes": len(shares),
        "lowest": [(name, *row) for name, row in lowest[:SHOWN]],
        "pairs": sorted(mistakes, key=lambda row: (-row[2], row))[:SHOWN],
        "columns": columns,
        "matrix": [(a, [counts.get((a, b), 0) for b in columns], shares[a][1]) for a in columns],
    }

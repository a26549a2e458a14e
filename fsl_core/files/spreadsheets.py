"""Tables that a spreadsheet opens without computing any cell."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, TextIO

from fsl_core.text import printable

FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001
"""A spreadsheet computes a cell that begins with one of these."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class CsvWriter:
    """Writes rows of a CSV file that a spreadsheet opens without computing any cell.

    A text that begins like a formula is preceded by an apostrophe, and control characters are
    written out. Numbers stay numbers.

    raw: every text as it is, for programs that look for the names themselves.
    """

    def __init__(self, file: TextIO, raw: bool = False):
        self._writer, self._raw = csv.writer(file, lineterminator="\n"), raw

    def writerow(self, cells: Iterable[Any]) -> None:
        self._writer.writerow(cells if self._raw else map(_harmless, cells))

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        for row in rows:
            self.writerow(row)


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    formula = text.startswith(FORMULA) and not NUMBER.fullmatch(text)
    return f"'{text}" if formula else text

"""Tables that commands print."""

from __future__ import annotations


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Rows of text under headings, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fsl_core.text import printable

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(Text(printable(heading)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell, lines=True)) for cell in row))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)

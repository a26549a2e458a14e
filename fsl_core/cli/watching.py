"""`fsl watch`: a page that shows runs while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsl_core.cli.arguments import say, there


def add_commands(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|SWEEP",
            help="directory of a run, a sweep or a search, or a folder of them",
            callback=there("no such folder", "A run, a sweep, a search, or a folder of runs"),
            show_default=False,
            readable=False,
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="of the page on this machine (0: a free one)")
    ] = 0,
) -> None:
    """Show the curves of runs while they train, on a page of this machine alone.

    It reads the files of their directories and writes nothing. Ctrl-C ends it.
    """
    from fsl_core.reporting.watching import WatchServer

    server = WatchServer(folder, port)
    say(f"open {server.address}    (Ctrl-C ends it)")
    try:
        server.serve()
    except KeyboardInterrupt:
        typer.echo("ended", err=True)

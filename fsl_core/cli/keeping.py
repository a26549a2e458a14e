"""`fsl keep`: a finished run without its weights, as evidence of a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsl_core.cli.arguments import RunDirectory, say

KeptDirectory = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="new folder, such as docs/results/runs/NAME")
]


def add_commands(app: typer.Typer) -> None:
    app.command()(keep)


def keep(directory: RunDirectory, out: KeptDirectory) -> None:
    """Keep a finished run as evidence: recipe, environment, episodes, result; no weights.

    Metrics are thinned, and of paths on this machine the last name is kept. `fsl compare` and
    `fsl report` take what is kept, and `fsl reproduce DIR` trains it again.
    """
    from fsl_core.reporting.scores import read_scores
    from fsl_core.runs.keeping import keep_run

    read_scores(directory)
    keep_run(directory, out)
    size = sum(file.stat().st_size for file in out.iterdir())
    say(f"{out}: {size / 1024:.0f} KiB kept")

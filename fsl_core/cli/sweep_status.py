"""`fsl sweep --status`: a table of runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import typer

from fsl_core.cli.arguments import say

ORDER = ("failed", "silent", "running", "queued", "waiting", "finished")


def show(folder: Path, take_over: float, as_json: bool) -> None:
    """Print how the runs of a sweep stand: those first that somebody may have to look at."""
    from fsl_core.cli.tables import print_table
    from fsl_core.runs.files import to_json
    from fsl_core.sweeping.status import standings

    found = sorted(standings(folder, take_over), key=lambda run: ORDER.index(run.state))
    if as_json:
        typer.echo(to_json([asdict(run) for run in found], "status", indent=2))
        return
    rows = [
        [run.run, run.state, run.where, str(run.step) if run.step else "", run.error]
        for run in found
    ]
    print_table(["run", "state", "where", "step", "error"], rows)
    counts = Counter(run.state for run in found)
    told = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    say(f"{len(found)} runs: {told}")

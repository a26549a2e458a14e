"""What of a run is shared: what `keep_run` keeps, and the judged weights."""

from __future__ import annotations

from pathlib import Path

from fsl_core.errors import RunError
from fsl_core.runs.checkpoints import copy_weights
from fsl_core.runs.files import read_result
from fsl_core.runs.keeping import keep_run
from fsl_core.runs.records import InDirectory


def share_run(directory: Path, out: Path) -> Path:
    """Copy a finished run as others may have it; returns `out`.

    Recipe, environment, metrics, episodes and result as `keep_run` has them, without places of this
    machine and without classes, and the checkpoint that was judged, without its optimizer.

    out: an empty or absent folder.
    RunError as for `keep_run`, or if the weights are absent.
    """
    which = read_result(directory)["checkpoint"]
    weights = InDirectory(directory)
    if not weights.has(which):
        raise RunError(f"{weights.named(which)}: absent. A run with its weights, not a kept one")
    keep_run(directory, out)
    copy_weights(weights.path(which), InDirectory(out).path(which))
    return out

"""Which runs go on in several processes, by what was measured of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from fsl_core.engine.choice import Choice
from fsl_core.engine.execution import Execution
from fsl_core.engine.ranks import ALONE
from fsl_core.training.outer_loop import processes_of


@pytest.mark.parametrize(
    ("workers", "seconds", "step", "processes"),
    [
        (2, 0.12, 0, 2),
        (2, 0.12, 1, 1),  # less than two minutes are left
        (2, None, 0, 1),  # nobody has measured it
        (1, 9.0, 0, 1),
        (20, 9.0, 999, 1),
        (20, 9.0, 0, 8),
        (2, 9.0, 1000, 1),
    ],
)
def test_a_run_of_1000_steps(workers: int, seconds: float | None, step: int, processes: int):
    execution = Execution(workers=workers)
    choice = Choice(execution, "measured", {str(execution): seconds})
    run = SimpleNamespace(ranks=ALONE, directory=Path(), step=step, steps=1000, choice=choice)
    assert processes_of(run) == processes
    run.directory = None  # a run in memory has nothing that others could go on from
    assert processes_of(run) == 1

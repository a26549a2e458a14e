"""The launcher of this machine: processes, forked if that is safe."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fsl_core.engine.environment import threads_of
from fsl_core.launcher import Ended, Launcher, Work
from fsl_core.sweeping.processes import Process, Processes
from fsl_core.sweeping.server import PATIENCE

CELLS = "fsl_core.cli.cells"
"""The module whose process runs cells; named, because it lies to the right of this room."""


class Local(Launcher):
    """Processes on this machine, each forked from one that has imported torch and all plugins.

    Forking is unsafe if a plugin starts threads or CUDA when it is imported; then every run is a
    process that imports everything. The processes end with the sweep, however that ends.
    """

    name = "local"
    outlives = False

    def __init__(
        self,
        no_plugin: Sequence[str] = (),
        jobs: Annotated[
            int, Field(gt=0, description="runs at a time; cores are shared among them")
        ] = 1,
    ):
        self.at_once: int = jobs
        self._no_plugin = no_plugin
        self._processes: Processes | None = None
        self._running: dict[Path, Process] = {}

    def start(self, work: Sequence[Work]) -> None:
        if self._processes is None:  # not before: what it inherits is decided when runs begin
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(self.at_once))}
            self._processes = Processes(CELLS, self._no_plugin, environment)
        for one in work:
            self._running[one.run] = self._processes.start(one.arguments, one.output)

    def poll(self, run: Path) -> Ended | None:
        code = self._running[run].poll()
        if code is None or code >= 0:
            return None if code is None else Ended(code)
        name = signal.Signals(-code).name
        return Ended(code, f"ended by {name}. More memory or fewer --jobs, if nobody stopped it")

    def stop(self, runs: Sequence[Path]) -> None:
        left = [self._running[run] for run in runs if run in self._running]
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [process for process in left if process.poll() is None]
            for process in left:
                process.send(number)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and any(p.poll() is None for p in left):
                time.sleep(0.02)

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()

    def note(self) -> str:
        if self._processes is None or not self._processes.reason:
            return ""
        why = self._processes.reason
        return f"no run was forked, so each imported everything again: {why}"

"""What a launcher is to start for each run of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsl_core.launcher import LAUNCHED, TAKE_OVER, Launcher, Work
from fsl_core.sweeping.jobs import Prepared
from fsl_core.sweeping.schedule import run_jobs


@dataclass(frozen=True)
class Settings:
    """How the runs of a sweep are computed, by whatever launcher.

    device:    auto, cpu, cuda.    no_plugin: names of plugins to leave out.
    take_over: seconds of silence after which another process's run is taken over.
    """

    device: str = "auto"
    no_plugin: Sequence[str] = ()
    take_over: float = TAKE_OVER

    def work(self, job: Prepared, launcher: Launcher) -> Work:
        """A run and the arguments of `fsl` that compute it.

        What outlives the sweep is a worker, which claims the run by itself. A run stays in one
        process: the sweep shares the cores among runs.
        """
        begin, own = ["resume"], ["--processes", "1"]
        if launcher.outlives:
            begin, own = ["sweep", "--worker"], ["--take-over", f"{self.take_over:g}"]
        options = ["--device", self.device, *own]
        options += [word for name in self.no_plugin for word in ("--no-plugin", name)]
        return Work(job.run, (*begin, str(job.run), *options))


def start(
    jobs: Sequence[Prepared],
    launcher: Launcher,
    settings: Settings,
    show: Callable[[], None] = lambda: None,
    worker: bool = False,
    more: Callable[[], None] = lambda: None,
) -> None:
    """Run the jobs that are not finished.

    show: called when something may have changed.    worker, more: as for `run_jobs`.
    """
    run_jobs(jobs, launcher, lambda job: settings.work(job, launcher), show, worker, more)


def stop(jobs: Sequence[Prepared], launcher: Launcher) -> int:
    """End the jobs that an earlier sweep has left for runs that are not finished; their number."""
    try:
        left = [job.run for job in jobs if job.state != "finished" and launcher.find(job.run)]
        launcher.stop(left)
        for run in left:
            (run / LAUNCHED).unlink(missing_ok=True)
    finally:
        launcher.close()
    return len(left)

"""Which run of a sweep is begun, waited for, finished or failed; a program stands for `fsl`."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import fsl_core as fsl
from fsl_core.config.matrix import read_matrix
from fsl_core.engine.environment import threads_of
from fsl_core.files.locks import Claim
from fsl_core.hooks.loader import Loaded
from fsl_core.launcher import LAUNCHED, Launcher, Work
from fsl_core.runs.files import IN_USE
from fsl_core.sweeping.jobs import CLAIM, FAILURE, Job, Prepared, find_jobs, last_step, make_jobs
from fsl_core.sweeping.local import Local
from fsl_core.sweeping.schedule import run_jobs
from fsl_core.sweeping.start import Settings, stop

PROGRAM = f"""
import shutil, sys, time
from pathlib import Path
from types import SimpleNamespace


def preload(options):
    return ""


def run(arguments):
    command, directory, what = arguments
    assert command == "resume"
    run, seed = Path(directory), directory.split("seed-")[1][0]
    with (run.parent / "begun.txt").open("a") as log:
        log.write(f"{{run.name}}\\n")
    said = (run.parent / "begun.txt").read_text().splitlines()
    if what == "deleted" and seed == "1":
        shutil.rmtree(run)
        sys.exit(1)
    if what == "refused" and said.count(run.name) == 1:
        print(f"{{run}}: {IN_USE}. Wait for it")
        sys.exit(2)
    if what == "slow":
        time.sleep(0.3)
    while what == "forever":
        time.sleep(1)
    if what != "nothing":
        (run / "result.json").write_text("{{}}")
    if what == "complaint":
        print("the report could not be written")
        sys.exit(2)
"""


@pytest.fixture
def queue(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Callable[..., list[Job]]:
    toy_recipe.write_text(toy_recipe.read_text() + "matrix: {seed: [0, 1, 2]}\n")
    matrix = read_matrix(toy_recipe, toy_plugins.catalogue)

    def prepared(take_over: float = 60.0) -> list[Job]:
        jobs = make_jobs(matrix.cells, tmp_path / "runs", take_over)
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
        return jobs

    return prepared


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run jobs by the program above."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr("fsl_core.sweeping.local.CELLS", "program")

    def run(jobs: list[Job], workers: int, what: str, look=lambda: None, **options: bool) -> None:
        def work(job: Job) -> Work:
            return Work(job.run, ("resume", str(job.run), what))

        run_jobs(jobs, Local(jobs=workers), work, look, **options)

    return run


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def begun(jobs: list[Job]) -> list[str]:
    return (jobs[0].directory.parent / "begun.txt").read_text().splitlines()


def test_two_sweeps_share_a_folder(queue, sweep):
    """Each run is begun once, and both sweeps end with all of them, whoever ran which."""
    queues, seen = [queue(), queue()], [set(), set()]
    both = threading.Barrier(2, timeout=600)

    def run(jobs: list[Job], states_seen: set[str]) -> None:
        both.wait()
        sweep(jobs, 1, "slow", lambda: states_seen.update(states(jobs)))

    threads = [threading.Thread(target=run, args=pair) for pair in zip(queues, seen, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [states(jobs) for jobs in queues] == [["finished"] * 3] * 2
    assert [job.error for jobs in queues for job in jobs] == [""] * 6
    assert sorted(begun(queues[0])) == sorted(job.directory.name for job in queues[0])
    assert any("elsewhere" in states_seen for states_seen in seen)
    assert not [job for job in queues[0] if (job.directory / CLAIM).exists()]


def test_a_result_counts_whatever_its_process_said_at_the_end(queue, sweep):
    jobs = queue()
    sweep(jobs, 2, "complaint")
    assert states(jobs) == ["finished"] * 3
    assert {job.error for job in jobs} == {"the report could not be written"}


def test_a_process_that_was_refused_is_begun_again(queue, sweep):
    jobs = queue()[:1]
    sweep(jobs, 1, "refused")
    assert (states(jobs), len(begun(jobs)), jobs[0].error) == (["finished"], 2, "")


def test_a_run_that_was_deleted_fails_alone(queue, sweep):
    jobs = queue()
    sweep(jobs, 3, "deleted")
    assert states(jobs) == ["finished", "failed", "finished"]
    told = f"{jobs[1].directory}: deleted while it ran. The same command runs it again"
    assert jobs[1].error == told


def test_a_folder_deleted_between_two_looks(queue, sweep):
    jobs = queue()[:1]
    shutil.rmtree(jobs[0].directory)
    sweep(jobs, 1, "fine")
    assert states(jobs) == ["failed"]
    assert jobs[0].error.startswith(f"{jobs[0].directory}: deleted while it ran. ")


def test_a_process_that_ends_well_without_a_result_has_failed(queue, sweep):
    jobs = queue()[:1]
    sweep(jobs, 1, "nothing")
    told = "no result.json. {0}: files of the run were deleted. The same command runs it again"
    assert (states(jobs), jobs[0].error) == (["failed"], told.format(jobs[0].directory))
    assert (jobs[0].directory / FAILURE).read_text() == f"{jobs[0].error}\n"


def test_a_run_that_another_process_writes_is_waited_for(queue, sweep):
    (job,) = queue()[:1]
    lock = FileLock(job.directory / ".lock")
    lock.acquire()
    seen = []

    def look() -> None:
        seen.append(job.state)
        if len(seen) == 2:  # the other process finishes
            (job.directory / "result.json").write_text("{}")
            lock.release()

    sweep([job], 1, "never", look)
    assert seen[:2] == ["elsewhere", "elsewhere"]
    assert job.state == "finished"
    assert not (job.directory.parent / "begun.txt").exists()


@pytest.fixture
def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Claim]:
    """Claims a run as a process of another machine would: nobody here can see whether it lives."""

    def claim(run: Path) -> Claim:
        with monkeypatch.context() as there:
            there.setattr("filelock._marker.host_name", lambda: "elsewhere")
            claimed = Claim(run / CLAIM, seconds=1.0)
            assert claimed.take()
        return claimed

    return claim


def test_a_dead_process_of_another_machine_is_taken_over(queue, sweep, on_another_machine):
    """Not before its time has passed. A worker waits for it, and runs it to its end."""
    jobs = queue(take_over=1.0)[:1]
    other = on_another_machine(jobs[0].directory)
    assert jobs[0].holder.host == "elsewhere"
    other._lease._stop_heartbeat()  # it dies
    began = time.monotonic()
    sweep(jobs, 1, "fine", worker=True)
    assert time.monotonic() - began > 1.0
    assert (states(jobs), len(begun(jobs))) == (["finished"], 1)


def test_a_worker_ends_when_all_others_are_alive(queue, sweep, on_another_machine):
    jobs = queue(take_over=1.0)
    other = on_another_machine(jobs[0].directory)
    jobs[1].fail("the loss is nan")
    sweep(jobs, 1, "fine", worker=True)
    assert states(jobs) == ["elsewhere", "failed", "finished"]
    assert begun(jobs) == [jobs[2].directory.name]
    other.release()


def test_a_process_that_is_taken_over_is_stopped(queue, sweep, monkeypatch: pytest.MonkeyPatch):
    """It had been silent for too long; the other one is waited for."""
    jobs = queue()[:1]
    stopped = []
    stop = Local.stop
    monkeypatch.setattr(Local, "stop", lambda self, runs: (stopped.extend(runs), stop(self, runs)))

    def look() -> None:
        if jobs[0].state == "running":
            jobs[0].claim.lost = True
        elif jobs[0].state == "elsewhere":
            (jobs[0].directory / "result.json").write_text("{}")

    sweep(jobs, 1, "forever", look)
    assert stopped == [jobs[0].run]
    assert states(jobs) == ["finished"]


def test_sweeps_that_renew_claims_at_another_pace_are_refused(queue, sweep, on_another_machine):
    jobs = queue(take_over=2.0)[:1]
    other = on_another_machine(jobs[0].directory)
    sweep(jobs, 1, "fine", worker=True)
    assert "claimed by a process with another --take-over than 2" in jobs[0].error
    other.release()


def test_a_folder_without_runs_is_no_sweep(tmp_path: Path):
    with pytest.raises(fsl.RunError, match=r"no runs here\. The folder of a sweep"):
        find_jobs(tmp_path)


def test_threads_are_shared_among_jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [threads_of(workers) for workers in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_of(2) == 5


def test_the_last_step_is_found_in_a_table_cut_short(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text(
        "".join(f'{{"step": {i}, "loss": 0.1}}\n' for i in range(500)) + '{"step": 500, "lo'
    )
    assert last_step(path) == 499


class Queue(Launcher):
    """Has a job for every run whose directory names one."""

    name = "queue"

    def __init__(self) -> None:
        self.stopped: list[Path] = []
        self.closed = False

    def find(self, run: Path) -> bool:
        return self.remembered(run) is not None

    def stop(self, runs) -> None:
        self.stopped += runs

    def close(self) -> None:
        self.closed = True


def test_jobs_that_a_sweep_has_left_are_stopped(tmp_path: Path):
    """Those of finished runs are left alone, and a run without a job is none."""
    queue, jobs = Queue(), []
    for name in ("finished", "left", "free"):
        run = tmp_path / name
        run.mkdir()
        jobs.append(Prepared(directory=run))
        if name != "free":
            queue.remember(run, name)
    jobs[0].state = "finished"
    assert stop(jobs, queue) == 1
    assert (queue.stopped, queue.closed) == ([tmp_path / "left"], True)
    assert [(job.directory / LAUNCHED).exists() for job in jobs] == [True, False, False]


@pytest.mark.parametrize("outlives", [False, True])
def test_a_run_of_a_sweep_stays_in_one_process(tmp_path: Path, outlives: bool):
    """What outlives the sweep is a sweep itself, and starts its run likewise."""
    job, launcher = SimpleNamespace(run=tmp_path), SimpleNamespace(outlives=outlives)
    arguments = Settings("cpu", ["x"], 7.0).work(job, launcher).arguments
    begin = ("sweep", "--worker") if outlives else ("resume",)
    own = ("--take-over", "7") if outlives else ("--processes", "1")
    assert arguments == (*begin, str(tmp_path), "--device", "cpu", *own, "--no-plugin", "x")

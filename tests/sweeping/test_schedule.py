"""Which run of a sweep is begun, waited for, finished or failed; a program stands for `fsl`."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from fsl_core.config.matrix import read_matrix
from fsl_core.engine.environment import threads_of
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.opening import IN_USE
from fsl_core.sweeping.processes import Processes
from fsl_core.sweeping.schedule import Job, last_step, make_jobs, run_jobs

PROGRAM = f"""
import shutil, sys
from pathlib import Path


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
    if what != "nothing":
        (run / "result.json").write_text("{{}}")
    if what == "complaint":
        print("the report could not be written")
        sys.exit(2)
"""


@pytest.fixture
def queue(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Callable[[], list[Job]]:
    toy_recipe.write_text(toy_recipe.read_text() + "matrix: {seed: [0, 1, 2]}\n")
    matrix = read_matrix(toy_recipe, toy_plugins.catalogue)
    return lambda: make_jobs(matrix.cells, tmp_path / "runs")


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Processes]]:
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    begun = []

    def begin() -> Processes:
        begun.append(Processes("program", (), os.environ))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def prepare(job: Job) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def begun(jobs: list[Job]) -> list[str]:
    return (jobs[0].directory.parent / "begun.txt").read_text().splitlines()


def test_two_sweeps_share_a_folder(queue, processes):
    """Each run is begun once, and both sweeps end with all of them, whoever ran which."""
    both, queues, seen = threading.Barrier(2, timeout=600), [queue(), queue()], [set(), set()]

    def sweep(jobs: list[Job], states_seen: set[str]) -> None:
        def prepare_together(job: Job) -> None:
            if not any(other.state == "running" for other in jobs) and len(both_at_work) < 2:
                both_at_work.append(job)
                both.wait()
            prepare(job)

        look = lambda: states_seen.update(states(jobs))  # noqa: E731
        run_jobs(jobs, 1, prepare_together, processes(), ["fine"], look)

    both_at_work: list[Job] = []
    threads = [threading.Thread(target=sweep, args=pair) for pair in zip(queues, seen, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [states(jobs) for jobs in queues] == [["finished"] * 3] * 2
    assert [job.error for jobs in queues for job in jobs] == [""] * 6
    assert sorted(begun(queues[0])) == sorted(job.directory.name for job in queues[0])
    assert len({job.directory for job in both_at_work}) == 2
    assert any("elsewhere" in states_seen for states_seen in seen)


def test_a_result_counts_whatever_its_process_said_at_the_end(queue, processes):
    jobs = queue()
    run_jobs(jobs, 2, prepare, processes(), ["complaint"])
    assert states(jobs) == ["finished"] * 3
    assert {job.error for job in jobs} == {"the report could not be written"}


def test_a_process_that_was_refused_is_begun_again(queue, processes):
    jobs = queue()[:1]
    run_jobs(jobs, 1, prepare, processes(), ["refused"])
    assert (states(jobs), len(begun(jobs)), jobs[0].error) == (["finished"], 2, "")


def test_a_run_that_was_deleted_fails_alone(queue, processes):
    jobs = queue()
    run_jobs(jobs, 3, prepare, processes(), ["deleted"])
    assert states(jobs) == ["finished", "failed", "finished"]
    told = f"{jobs[1].directory}: deleted while it ran. The same command runs it again"
    assert jobs[1].error == told


def test_a_folder_deleted_between_two_looks(queue, processes, monkeypatch: pytest.MonkeyPatch):
    jobs = queue()[:1]
    prepare(jobs[0])

    def deleted(job: Job) -> None:
        shutil.rmtree(job.directory)
        raise FileNotFoundError(2, "No such file or directory", str(job.directory))

    run_jobs(jobs, 1, deleted, processes())
    assert states(jobs) == ["failed"]
    assert "No such file or directory" in jobs[0].error


def test_a_process_that_ends_well_without_a_result_has_failed(queue, processes):
    jobs = queue()[:1]
    run_jobs(jobs, 1, prepare, processes(), ["nothing"])
    told = "no result.json. {0}: files of the run were deleted. The same command runs it again"
    assert (states(jobs), jobs[0].error) == (["failed"], told.format(jobs[0].directory))


def test_a_run_that_another_process_writes_is_waited_for(queue, processes):
    (job,) = queue()[:1]
    prepare(job)
    lock = FileLock(job.directory / ".lock")
    lock.acquire()
    seen = []

    def look() -> None:
        seen.append(job.state)
        if len(seen) == 2:  # the other process finishes
            (job.directory / "result.json").write_text("{}")
            lock.release()

    never = pytest.fail
    run_jobs([job], 1, lambda _: never("it was begun a second time"), processes(), (), look)
    assert seen[:2] == ["elsewhere", "elsewhere"]
    assert job.state == "finished"


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

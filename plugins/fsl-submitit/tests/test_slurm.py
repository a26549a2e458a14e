"""What slurm submits, what it reads back, and how a sweep finds its jobs again."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fsl_core as fsl

submitit = pytest.importorskip("submitit", reason="submitit is not installed")

from fsl_submitit import Slurm  # noqa: E402
from fsl_submitit.job import Compute  # noqa: E402


class Words(fsl.Work):
    """Work that is any program."""

    @property
    def command(self):
        return [sys.executable, "-c", *self.arguments]


def work(folder: Path, name: str, program: str) -> Words:
    run = folder / name
    run.mkdir(parents=True)
    return Words(run, (program,))


def ended(launcher: fsl.Launcher, run: Path) -> fsl.Ended:
    deadline = time.monotonic() + 300
    while (found := launcher.poll(run)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_jobs_are_found_again_by_another_sweep(tmp_path: Path):
    waiting = "import time, pathlib\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"
    both = [work(tmp_path, "one", f"import os; os.chdir({str(tmp_path)!r})\n{waiting}")]
    both.append(work(tmp_path, "two", "print('done'); raise SystemExit(3)"))
    first = Slurm(cluster="local")
    first.start(both)
    assert ended(first, both[1].run) == fsl.Ended(3)
    assert both[1].output.read_text() == "done\n"
    first.close()

    second = Slurm(cluster="local")
    assert [second.find(one.run) for one in both] == [True, False]
    assert not Slurm(cluster="debug").find(both[0].run)
    assert second.poll(both[0].run) is None
    (tmp_path / "go").touch()
    first._jobs[both[0].run]._process.wait()  # its parent is this process, which has to reap it
    assert ended(second, both[0].run) == fsl.Ended(0)


def test_a_job_that_was_killed_says_its_state(tmp_path: Path):
    one = work(tmp_path, "one", "import time; time.sleep(60)")
    launcher = Slurm(cluster="local")
    launcher.start([one])
    launcher._jobs[one.run]._process.kill()
    found = ended(launcher, one.run)
    assert found.code == 1
    assert found.reason.endswith(f"INTERRUPTED. Its log is in {tmp_path / '.submitit'}")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs of Slurm's names: sbatch keeps its script, squeue reads `queue`."""
    there = tmp_path / "bin"
    there.mkdir()
    programs = {
        "srun": "exit 0",
        "sbatch": f'cp "$1" {there}/script; echo Submitted batch job 71',
        "squeue": f"cat {there}/queue",
        "sacct": f"cat {there}/state",
        "scancel": f'echo "$@" >> {there}/cancelled',
    }
    for name, text in programs.items():
        program = there / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (there / "queue").write_text("")
    (there / "state").write_text("")
    monkeypatch.setenv("PATH", f"{there}{os.pathsep}{os.environ['PATH']}")
    return there


def test_runs_are_an_array_with_the_options_of_the_launcher(cluster: Path, tmp_path: Path):
    both = [work(tmp_path / "runs", name, "pass") for name in ("one", "two")]
    launcher = Slurm(
        partition="gpu",
        minutes=30,
        cpus=4,
        gpus=1,
        jobs=1,
        setup=["module load x"],
        more={"nice": 5},
    )
    launcher.start(both)
    script = (cluster / "script").read_text()
    for line in (
        "--array=0-1%1",
        "--partition=gpu",
        "--time=30",
        "--cpus-per-task=4",
        "--gpus-per-node=1",
        "--nice=5",
        "--mem=8GB",
    ):
        assert f"#SBATCH {line}\n" in script
    assert script.index("module load x") < script.index("OMP_NUM_THREADS=4") < script.index("srun")
    assert [launcher.remembered(one.run) for one in both] == ["71_0", "71_1"]
    launcher.stop([both[1].run])
    assert (cluster / "cancelled").read_text() == "71_1\n"


def test_what_slurm_says_of_a_job(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both = [work(tmp_path / "runs", name, "pass") for name in ("one", "two")]
    Slurm().start(both)
    (cluster / "queue").write_text("70_1\n71_0\n")
    launcher = Slurm()
    assert [launcher.find(one.run) for one in both] == [True, False]
    assert launcher.poll(both[0].run) is None
    (cluster / "queue").unlink()  # squeue fails: it may be there still
    monkeypatch.setattr("fsl_submitit.launcher.READ_EVERY", 0.0)
    assert launcher.poll(both[0].run) is None
    (cluster / "queue").write_text("")
    assert launcher.poll(both[0].run) is None  # what it left may not be seen here yet
    monkeypatch.setattr("fsl_submitit.launcher.SHARED_FOLDER_DELAY", 0.0)
    (cluster / "state").write_text("   TIMEOUT \n")
    ended = fsl.Ended(1, f"job 71_0: TIMEOUT. Its log is in {tmp_path / 'runs' / '.submitit'}")
    assert launcher.poll(both[0].run) == ended
    (cluster / "state").unlink()
    assert "71_0: no longer in the queue, and has said" in launcher.poll(both[0].run).reason


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(fsl.FslError, match=r"sbatch is not here\. A machine of a Slurm cluster"):
        Slurm().start([work(tmp_path, "one", "pass")])
    assert not Slurm().find(tmp_path / "one")


RECIPE = """\
episodes: {name: glyphs, n_way: 2, n_query: 1}
backbone: {name: mlp, hidden: [4]}
adapter: {name: nearest-centroid}
outer: {steps: 1, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 2}
matrix: {seed: [0]}
launcher: {name: slurm, cluster: local, minutes: 10}
"""


@pytest.mark.slow
def test_a_sweep_runs_as_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The directory of a run says which job did it."""
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "submitit")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "fsl_core", "sweep", "recipe.yaml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "out" / "runs").glob("seed-*"))
    assert len(runs) == 1
    assert (runs[0] / "result.json").is_file()
    assert Slurm(cluster="local").remembered(runs[0]).isdigit()
    assert (runs[0] / "output.txt").read_text().splitlines()[-1] == "1 finished"


def test_a_job_before_its_limit_saves_and_is_submitted_again(tmp_path: Path):
    """The process gets SIGTERM, and what is submitted again appends to the same output."""
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(4)))\n"
        "print('begun', flush=True)\ntime.sleep(60)"
    )
    output = tmp_path / "output.txt"
    compute = Compute([sys.executable, "-c", program], output)
    with output.open("wb") as file:
        compute._process = subprocess.Popen(compute.command, stdout=file, stdin=subprocess.DEVNULL)
    while output.read_text() != "begun\n":
        time.sleep(0.02)
    again = compute.checkpoint()
    assert compute._process.wait() == 4
    assert output.read_text() == "begun\nsaved\n"
    assert pickle.loads(pickle.dumps(again.function)).command == compute.command
    shorter = Compute([sys.executable, "-c", "print('again')"], output)
    assert shorter() == 0
    assert output.read_text() == "begun\nsaved\nagain\n"


def test_a_signal_that_saves_a_job_does_not_wait_for_what_has_ended(tmp_path: Path):
    """submitit calls `checkpoint` in the midst of the wait for the command."""
    compute = Compute([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "output")
    called = []

    def handler(*_: object) -> None:
        begun = time.monotonic()
        compute.checkpoint()
        called.append(time.monotonic() - begun)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        assert compute() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert called[0] < 30

"""Jobs of Slurm itself, on a cluster that slurm_here.sh begins on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import fsl_core as fsl

pytest.importorskip("submitit", reason="submitit is not installed")

from fsl_submitit import Slurm

ABSENT = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
SCRIPT = Path(__file__).with_name("slurm_here.sh")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"no Slurm: {', '.join(ABSENT)} not installed"),
    pytest.mark.skipif(
        not os.environ.get("FSL_TEST_SLURM"), reason="not run: FSL_TEST_SLURM=1 begins a Slurm"
    ),
    pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() != 0, reason="slurmd needs root"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory(prefix="slurm") as folder:  # a socket's path is short
        monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        with socket.create_server(("", 0)) as free:
            monkeypatch.setenv("SLURM_HERE_PORT", str(free.getsockname()[1]))
        try:
            subprocess.run(["sh", SCRIPT, "start", folder, "2"], check=True)
            yield
        finally:
            subprocess.run(["sh", SCRIPT, "stop", folder], check=True)
            time.sleep(1)  # they write into the folder when they end


class Words(fsl.Work):
    """Work that is any program."""

    @property
    def command(self):
        return [sys.executable, "-c", *self.arguments]


def ended(launcher: fsl.Launcher, run: Path) -> fsl.Ended:
    deadline = time.monotonic() + 120
    while (found := launcher.poll(run)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.mark.usefixtures("cluster")
def test_an_array_runs_is_found_again_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One at a time of four jobs: one ends well, one fails, one goes on, and one waits for it."""
    monkeypatch.setattr("fsl_submitit.launcher.SHARED_FOLDER_DELAY", 2.0)
    monkeypatch.setattr("fsl_submitit.launcher.READ_EVERY", 0.5)
    programs = {
        "ends": "import os; print(os.environ['SLURM_ARRAY_TASK_ID'])",
        "fails": "raise SystemExit(3)",
        "goes on": "import time; time.sleep(600)",
        "waits": "import time; time.sleep(600)",
    }
    work = [Words(tmp_path / "runs" / name, (text,)) for name, text in programs.items()]
    for one in work:
        one.run.mkdir(parents=True)
    first = Slurm(memory=0.5, minutes=10, jobs=1)
    first.start(work)
    assert [ended(first, one.run).code for one in work[:2]] == [0, 3]
    assert work[0].output.read_text() == "0\n"
    first.close()

    second = Slurm(memory=0.5)
    assert [second.find(one.run) for one in work] == [False, False, True, True]
    assert [second.poll(one.run) for one in work[2:]] == [None, None]
    second.stop([one.run for one in work[2:]])
    for one in work[2:]:
        assert ended(second, one.run).code != 0
    assert not Slurm().find(work[2].run)


@pytest.mark.usefixtures("cluster")
def test_what_the_cluster_does_not_take_is_said_in_one_line(tmp_path: Path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    with pytest.raises(fsl.FslError, match=r"launcher slurm: .*invalid partition.*Options that"):
        Slurm(partition="nowhere").start([Words(run, ("pass",))])

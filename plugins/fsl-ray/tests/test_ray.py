"""What a user reads when there is no cluster; nothing here needs one."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsl_core as fsl

pytest.importorskip("ray", reason="ray is not installed")

from fsl_ray import Ray, cluster
from fsl_ray.job import Job


def test_an_address_where_nothing_listens_is_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    launcher = Ray(f"127.0.0.1:{port}")
    told = rf"launcher ray: no cluster at 127\.0\.0\.1:{port} \(.*refused\)\. HOST:PORT of a head"
    try:
        with pytest.raises(fsl.FslError, match=told):
            launcher.start([fsl.Work(tmp_path, ("resume", str(tmp_path)))])
    finally:
        launcher.close()


@pytest.mark.parametrize("address", ["here", "here:port", "127.0.0.1:99999999"])
def test_what_is_no_address_is_one_line(address: str):
    with pytest.raises(fsl.FslError, match=r"no cluster at .*\. HOST:PORT of a head that runs"):
        cluster.Cluster(address)


def test_a_run_without_a_job_is_not_found(tmp_path: Path):
    """Nor is Ray asked, which takes seconds."""
    launcher = Ray("127.0.0.1:1")
    assert not launcher.find(tmp_path)
    assert launcher._driver is None
    launcher.close()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs are plain objects of this process, which goes on."""
    monkeypatch.setattr("fsl_ray.job._end_this_actor", lambda: None)
    monkeypatch.setattr("fsl_ray.job.LINGER", 0.0)
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:  # they call what is replaced here
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.usefixtures("alone")
def test_a_job_appends_what_its_command_prints_and_has_its_code(tmp_path: Path):
    output = tmp_path / "output.txt"
    output.write_text("before\n")
    program = "import os; print(os.environ['WORD'], os.getcwd()); raise SystemExit(3)"
    job = Job([sys.executable, "-c", program], output, {"WORD": "here"}, tmp_path)
    assert job.ended() == (3, "")
    assert output.read_text() == f"before\nhere {tmp_path}\n"


@pytest.mark.usefixtures("alone")
def test_a_job_that_is_stopped_may_save(tmp_path: Path):
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(4)))\n"
        "print('begun', flush=True)\ntime.sleep(600)"
    )
    output = tmp_path / "output.txt"
    job = Job([sys.executable, "-c", program], output, {}, tmp_path)
    while not output.exists() or output.read_text() != "begun\n":
        time.sleep(0.02)
    job.stop()
    assert job.ended() == (4, "")
    assert output.read_text() == "begun\nsaved\n"


@pytest.mark.usefixtures("alone")
def test_a_job_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fsl_ray.job.PATIENCE", 0.5)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(600)"
    output = tmp_path / "output.txt"
    job = Job([sys.executable, "-u", "-c", program], output, {}, tmp_path)
    while not output.exists() or not output.read_text():
        time.sleep(0.02)
    job.stop()
    assert job.ended() == (-9, "")


@pytest.mark.usefixtures("alone")
def test_a_machine_without_the_folder_says_so(tmp_path: Path):
    job = Job(["true"], tmp_path / "absent" / "output.txt", {}, tmp_path)
    code, reason = job.ended()
    assert code == 1
    assert reason.startswith(f"{tmp_path}/absent/output.txt: No such file or directory. The folder")

"""Processes forked from a server: alone, ended with whoever began them, each with its own fate.

They run a program that imports nothing, so that they cost what a process costs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fsl_core.cli import cells
from fsl_core.sweeping import processes
from fsl_core.sweeping.processes import Process, Processes

PROGRAM = '''
import atexit, json, os, random, signal, sys, threading, time, warnings

loaded, random_numbers = [], random.Random(0)


def preload(options):
    loaded.extend(options)
    if "exit" in options:
        os._exit(3)
    if "thread" in options:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("a library that prints while it is imported")
    return "the program says so" if "refuse" in options else ""


def run(arguments):
    globals()[arguments[0]](*arguments[1:])


def state():
    """What a run could leave to the next, then all of it changed."""
    told = {
        "loaded": loaded, "cwd": os.getcwd(), "random": random_numbers.random(),
        "handler": str(signal.getsignal(signal.SIGTERM)), "variable": os.environ.get("LEFT"),
        "child_handler": str(signal.getsignal(signal.SIGCHLD)),
        "wakeup": signal.set_wakeup_fd(-1), "argv": sys.argv, "filters": len(warnings.filters),
        "threads": os.environ["OMP_NUM_THREADS"], "session": os.getsid(0) == os.getpid(),
        "input": sys.stdin.read(), "open": len(os.listdir("/proc/self/fd")),
    }
    print(json.dumps(told))
    print("to standard error", file=sys.stderr)
    sys.argv.append("changed"), loaded.append("changed"), random_numbers.random()
    os.environ["LEFT"] = "behind"
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("always")


def end(how):
    {"exit": lambda: sys.exit(5), "_exit": lambda: os._exit(7), "raise": lambda: 1 / 0,
     "told": lambda: sys.exit("one line"), "thread": thread, "closed": sys.stdout.close,
     "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
     "fine": lambda: None}[how]()


def thread():
    """What is to happen at the end happens: threads are waited for, then atexit."""
    atexit.register(print, "at exit")
    main = threading.main_thread()
    threading.Thread(target=lambda: (main.join(), print("from a thread"))).start()
    print("from the main thread", end=", ")


def wait(file):
    with open(file, "w") as pid:
        pid.write(str(os.getpid()))
    time.sleep(120)
'''


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Processes]]:
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    begun = []

    def begin(*options: str) -> Processes:
        begun.append(Processes("program", options, os.environ))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def ended(process: Process) -> int:
    return eventually(lambda: (code := process.poll()) is not None and [code])[0]


def eventually(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 600
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """A process that has ended and that nobody has asked about yet is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def started(file: Path) -> int:
    return int(eventually(lambda: file.is_file() and file.read_text()))


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


@linux
def test_a_process_finds_nothing_of_the_one_before(start, tmp_path: Path):
    """All that a run may change is for the next as it was, and as in a process not forked."""
    forked, told = start("an option"), []
    for i in range(2):
        assert ended(forked.start(["state"], tmp_path / f"{i}.txt")) == 0
        first, second = (tmp_path / f"{i}.txt").read_text().splitlines()
        assert second == "to standard error"
        told.append(json.loads(first))
    assert not forked.reason
    assert told[0] == told[1]
    assert told[0]["loaded"] == ["an option"]
    assert (told[0]["threads"], told[0]["variable"], told[0]["input"]) == ("3", None, "")
    assert (told[0]["wakeup"], told[0]["session"]) == (-1, True)

    alone = start("refuse")
    assert ended(alone.start(["state"], tmp_path / "alone.txt")) == 0
    assert alone.reason == "the program says so"
    fresh = json.loads((tmp_path / "alone.txt").read_text().splitlines()[0])
    differing = {key for key in fresh if fresh[key] != told[0][key]}
    assert differing <= {"loaded", "argv", "open"}  # the first two are the program's own business


@pytest.mark.parametrize("options", [(), ("refuse",)], ids=["forked", "alone"])
def test_each_process_has_its_own_end(start, tmp_path: Path, options: tuple[str, ...]):
    begun, expected = start(*options), {"exit": 5, "_exit": 7, "raise": 1, "fine": 0}
    expected |= {"told": 1, "thread": 0, "closed": 0}
    expected["segfault"] = -signal.SIGSEGV
    running = {how: begun.start(["end", how], tmp_path / how) for how in expected}
    assert {how: ended(process) for how, process in running.items()} == expected
    assert "ZeroDivisionError" in (tmp_path / "raise").read_text()
    assert (tmp_path / "told").read_text() == "one line\n"
    assert (tmp_path / "thread").read_text().split("\n") == [
        "from the main thread, from a thread",
        "at exit",
        "",
    ]
    assert ended(begun.start(["end", "fine"], tmp_path / "again")) == 0


@pytest.mark.parametrize("options", [(), ("refuse",)], ids=["forked", "alone"])
def test_closing_ends_what_runs(start, tmp_path: Path, options: tuple[str, ...]):
    begun = start(*options)
    process = begun.start(["wait", str(tmp_path / "pid")], tmp_path / "output")
    pid = started(tmp_path / "pid")
    assert process.poll() is None
    begun.close()
    assert not alive(pid)


WAITING = """
import sys
from pathlib import Path
from fsl_core.sweeping.processes import Processes

begun = Processes("program", sys.argv[2:])
begun.start(["wait", sys.argv[1]], Path("output"))
sys.stdin.read()
"""


@pytest.mark.parametrize("options", [[], ["refuse"]], ids=["forked", "alone"])
def test_no_process_outlives_a_parent_that_was_killed(start, tmp_path: Path, options: list[str]):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "pid"), *options]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE)
    pid = started(tmp_path / "pid")
    assert alive(pid)
    parent.kill()
    parent.communicate()
    eventually(lambda: not alive(pid))


@linux
def test_a_server_that_is_killed_takes_its_processes_along(start, tmp_path: Path):
    """They count as killed, and the next process is forked from another server."""
    begun = start()
    process = begun.start(["wait", str(tmp_path / "pid")], tmp_path / "output")
    pid = started(tmp_path / "pid")
    os.kill(begun._server._process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    eventually(lambda: not alive(pid))
    assert ended(begun.start(["end", "fine"], tmp_path / "next")) == 0
    assert not begun.reason


@linux
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("refuse", "the program says so"),
        ("thread", "something that was imported has started 1 threads"),
        ("exit", "the process to fork from has ended while it loaded"),
    ],
)
def test_where_forking_is_not_safe(start, tmp_path: Path, option: str, reason: str):
    begun = start(option)
    assert ended(begun.start(["end", "exit"], tmp_path / "output")) == 5
    assert begun.reason == reason


def test_other_systems_do_not_fork(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    begun = start()
    assert begun.reason == "it is not done on darwin"
    assert ended(begun.start(["end", "exit"], tmp_path / "output")) == 5


@linux
@pytest.mark.parametrize("spoilt", [False, True])
def test_cuda_that_does_not_outlive_a_fork(spoilt: bool, monkeypatch: pytest.MonkeyPatch):
    """What torch says in the forked process counts; here it is asked in place of CUDA."""
    parent = os.getpid()
    answer = lambda: spoilt and os.getpid() != parent  # noqa: E731
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", answer)
    assert cells.cuda_is_spoilt() is spoilt

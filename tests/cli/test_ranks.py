"""`--processes N` and torchrun, as a user calls them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsl_core.cli.ranks import GRACE, LOST, _failed, _forwarded, _Rank, _wait
from fsl_core.runs.checkpoints import progress_of
from tests.conftest import TOY

LONGER = ("-s", "outer.steps=24", "-s", "outer.meta_batch_size=4", "-s", "adapter.name=dies")


@pytest.fixture
def recipe(toy_recipe: Path) -> Path:
    (toy_recipe.parent / "more").mkdir()
    shutil.copyfile(TOY / "shared.py", toy_recipe.parent / "more" / "shared.py")
    return toy_recipe


def test_a_rank_that_dies_ends_the_run_and_one_process_goes_on(recipe, fsl, in_process):
    options = (*LONGER, "--plugins-dir", "more")
    alone = in_process("run", "toy.yaml", "--out", "alone", *options)
    assert alone.code == 0, alone.err
    started = time.monotonic()
    dying = fsl("run", "toy.yaml", "--out", "run", *options, "--processes", 2, DYING_RANK="1")
    assert time.monotonic() - started < 60  # most of it to begin, on a busy machine
    assert dying.returncode == 128 + signal.SIGKILL
    assert dying.stderr.splitlines()[-1] == (
        "rank 1 of 2: ended by SIGKILL; its last words: no more tasks, please. `fsl resume` goes "
        "on from the last checkpoint, with any number of processes"
    )
    assert progress_of(Path("run/checkpoints/last.safetensors"))["step"] == 8
    resumed = in_process("resume", "run")
    assert resumed.code == 0, resumed.err
    assert resumed.out.splitlines()[0] == alone.out.splitlines()[0]
    for name in ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "episodes.csv"):
        assert (Path("run") / name).read_bytes() == (Path("alone") / name).read_bytes(), name


def test_a_mistake_is_one_line(recipe, fsl):
    ended = fsl("run", "toy.yaml", "-s", "outer.stepz=3", "--processes", 2)
    told = "-s outer.stepz: section 'outer' has no such option. Did you mean 'steps'?\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", told)


SHARED = ("-s", "execution.workers=2", "-s", "outer.meta_batch_size=4")
SAME = ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "episodes.csv")


STOPS = """\
import os, signal

@fsl.hookimpl
def fsl_step_finished(step):
    if step == 7:
        os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.fixture
def long_from_the_start(monkeypatch):
    monkeypatch.setattr("fsl_core.training.outer_loop.PROCESSES_PAY", 0.0)


@pytest.mark.usefixtures("long_from_the_start")
def test_a_long_run_goes_on_in_a_process_for_each_worker(recipe, in_process):
    told = "2 processes go on, and share the workers. `--processes 1` stays in one\n"
    ended = in_process("run", "toy.yaml", "--out", "several", *SHARED)
    assert (ended.code, ended.out, ended.err) == (0, "", told)  # the first of them has said it
    assert in_process("run", "toy.yaml", "--out", "one", *SHARED, "--processes", 1).code == 0
    for name in (*SAME, "execution.json"):
        assert (Path("several") / name).read_bytes() == (Path("one") / name).read_bytes(), name
    counts = [json.loads(Path(run, "result.json").read_text()) for run in ("several", "one")]
    assert [result.get("processes", 1) for result in counts] == [2, 1]

    plugin = recipe.parent / "fslplugin.py"
    whole = plugin.read_text()
    plugin.write_text(f"{whole}\n\n{STOPS}")
    stopped = in_process("run", "toy.yaml", "--out", "stopped", *SHARED, "--processes", 1)
    assert stopped.code == 128 + signal.SIGINT
    plugin.write_text(whole)
    ended = in_process("resume", "stopped", "--trust-plugins")
    assert (ended.code, ended.out, ended.err.endswith(told)) == (0, "", True)
    for name in SAME:
        assert (Path("stopped") / name).read_bytes() == (Path("one") / name).read_bytes(), name


@pytest.mark.usefixtures("long_from_the_start")
def test_what_several_processes_give_is_compared(recipe, in_process):
    expect = "expect={accuracy: {value: 2, tolerance: 0.5}}"
    ended = in_process("reproduce", "toy.yaml", "--out", "again", *SHARED, "-s", expect)
    assert (ended.code, "2 processes go on" in ended.err) == (1, True)
    assert ended.out.startswith("NOT reproduced: accuracy 0.")


def test_a_short_run_stays_in_one_process(recipe, in_process):
    assert "processes go on" not in in_process("run", "toy.yaml", "--out", "short", *SHARED).err
    assert "processes" not in json.loads(Path("short/result.json").read_text())


@pytest.mark.usefixtures("long_from_the_start")
def test_what_ends_the_processes_ends_the_command(recipe, in_process):
    plugin = recipe.parent / "fslplugin.py"
    plugin.write_text(f"{plugin.read_text()}\n\n{STOPS}")
    assert in_process("run", "toy.yaml", "--out", "out", *SHARED).code == 128 + signal.SIGINT
    assert progress_of(Path("out/checkpoints/last.safetensors"))["step"] == 7


@pytest.fixture
def one_of_two(monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("command", [("plugins",), ("sweep", "toy.yaml"), ("predict", "run")])
def test_other_commands_are_for_one_process(one_of_two, in_process, command):
    ended = in_process(*command)
    assert ended.code == 2
    assert ended.err == (
        f"fsl {command[0]}: one process does this, and WORLD_SIZE=2 says that there are several. "
        "Without torchrun; run, resume, eval, reproduce can share their work\n"
    )


def test_processes_are_started_once(one_of_two, in_process, recipe):
    ended = in_process("run", "toy.yaml", "--processes", "3")
    assert (ended.code, ended.err) == (
        2,
        "--processes 3: this is one of 2 processes that are there already. Either torchrun or "
        "--processes\n",
    )


class Program(_Rank):
    """A rank that runs some Python, which costs less than a run."""

    def __init__(self, number: int, code: str, folder: Path):
        self.number, self.count, self._output = number, 2, folder / f"{number}.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen([sys.executable, "-c", code], stderr=output)


@pytest.mark.parametrize(
    ("codes", "cause"),
    [((0, 0), None), ((LOST, 3), 1), ((2, LOST), 0), ((0, 1), 1)],
)
def test_the_cause_is_not_a_rank_that_lost_another(tmp_path, codes, cause):
    ranks = [Program(i, f"raise SystemExit({code})", tmp_path) for i, code in enumerate(codes)]
    found = _wait(ranks)
    assert found is (None if cause is None else ranks[cause])


def test_others_have_a_while_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("fsl_core.cli.ranks.GRACE", 0.2)
    waits = Program(0, "import time; time.sleep(60)", tmp_path)
    fails = Program(1, "import sys; sys.exit('such a pity.')", tmp_path)
    started = time.monotonic()
    assert _wait([waits, fails]) is fails
    assert time.monotonic() - started < GRACE
    assert not waits.ended()
    waits.kill()
    assert "rank 1 of 2: exit code 1; its last words: such a pity. `fsl" in fails.last_words
    assert _failed([waits]) is waits


def test_each_rank_gets_a_signal_once():
    class Counts:
        def __init__(self):
            self.got = []

        def signal(self, number):
            self.got.append(number)

    ranks = [Counts(), Counts()]
    with _forwarded(ranks):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert [rank.got for rank in ranks] == [[signal.SIGTERM]] * 2


KILLS = int(os.environ.get("FSL_TEST_KILLS", "0"))


@pytest.mark.skipif(not KILLS, reason="takes minutes: FSL_TEST_KILLS=20 runs it")
def test_killed_at_any_moment(recipe, fsl, in_process):
    """A random rank is killed at a random moment, and a random number of ranks goes on."""
    options = ["-s", "outer.steps=150", "-s", "outer.meta_batch_size=4", "--plugins-dir", "more"]
    options += ["-s", "adapter.name=dies", "-s", "outer.checkpoint_every=7"]
    assert in_process("run", "toy.yaml", "--out", "alone", *options).code == 0
    chance = random.Random(0)
    killed = 0
    for trial in range(KILLS):
        out, before, after = f"run{trial}", chance.randint(1, 3), chance.randint(1, 3)
        command = ["run", "toy.yaml", "--out", out, *options, "--processes", str(before)]
        with subprocess.Popen(
            [sys.executable, "-m", "fsl_core", *command],
            env={**os.environ, "FSL_LOAD_PLUGINS": "none"},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as started:
            while not (Path(out) / "recipe.yaml").exists() and started.poll() is None:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 2.0 * before))
            victim = rank_of(started.pid, chance.randrange(before), before)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
                killed += 1
            assert started.wait(timeout=120) == 0 or victim is not None
        ended = fsl("resume", out, "--processes", after)
        assert ended.returncode == 0, ended.stderr
        for name in ("checkpoints/last.safetensors", "episodes.csv"):
            assert (Path(out) / name).read_bytes() == (Path("alone") / name).read_bytes(), out
        print(f"{out}: {before} ranks, killed: {victim is not None}, resumed with {after}")
    assert killed > KILLS // 2


def rank_of(parent: int, rank: int, count: int) -> int | None:
    """The number of a rank's process; None if it has ended."""
    if count == 1:
        return parent
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for child in children.read_text().split() if children.exists() else ():
        try:
            told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in told:
            return int(child)
    return None

"""Ctrl-C, SIGTERM and SIGHUP in every phase of a run: the code, the message, and what is kept."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer

from fsl_core.cli import app
from fsl_core.cli.command import as_command
from fsl_core.cli.interrupts import SIGNALS, interruptible
from fsl_core.reporting.progress import on_stderr
from tests.parts.command_line import interrupt_at

RUN = ["run", "toy.yaml", "-s", "outer.validate_every=0", "--out", "out"]
OBSERVER = """

import os, signal

def send(*names):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))

@fsl.hookimpl
def {hook}:
    {then}
"""


WAITS = """\
import time
    print(step, flush=True)
    while not os.path.exists("terminated"):
        time.sleep(0.01)
"""


def watch(folder: Path, hook: str, then: str) -> None:
    """The toy plugin with an observer."""
    plugin = folder / "fslplugin.py"
    plugin.write_text(plugin.read_text() + OBSERVER.format(hook=hook, then=then))


AT_STEP_3 = "fsl_step_finished(step)", "if step == 3: send({})"
KEPT = "at step 3 of 12; nothing is lost. `fsl resume out` goes on from step 3"
FROM_2 = "at step 3 of 12. `fsl resume out` goes on from step 2, that of the last checkpoint"
FROM_0 = "at step 3 of 12, before the first checkpoint. `fsl resume out` starts from the beginning"
BEFORE = "before the first of 12 steps. `fsl resume out` begins with it"
TRAINED = "after training; nothing of it is lost. `fsl resume out` evaluates it"
JUDGED = "after the result was written. `fsl report out` writes the report"


@pytest.mark.parametrize(
    ("observed", "signals", "every", "message"),
    [
        (AT_STEP_3, ["SIGINT"], 100, KEPT),
        (AT_STEP_3, ["SIGTERM"], 100, KEPT),
        (AT_STEP_3, ["SIGHUP"], 100, KEPT),
        (AT_STEP_3, ["SIGTERM", "SIGINT"], 2, FROM_2),
        (AT_STEP_3, ["SIGINT", "SIGINT"], 100, FROM_0),
        (("fsl_run_started()", "send({})"), ["SIGTERM"], 100, BEFORE),
        (("fsl_step_finished(step)", "if step == 12: send({})"), ["SIGTERM"], 100, TRAINED),
        (("fsl_evaluated(split)", "send({})"), ["SIGINT"], 100, JUDGED),
        (("fsl_run_finished()", "send({})"), ["SIGTERM"], 100, JUDGED),
    ],
)
def test_every_phase(
    call, tmp_path: Path, observed: tuple[str, str], signals: list[str], every: int, message: str
):
    hook, then = observed
    watch(tmp_path, hook, then.format(", ".join(f"'{name}'" for name in signals)))
    before = [signal.getsignal(number) for number in SIGNALS]
    ended = call(*RUN, "-s", f"outer.checkpoint_every={every}")
    assert ended.err == f"interrupted {message}\n"
    assert ended.code == 128 + getattr(signal, signals[0])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    watch(tmp_path, hook, "pass")
    command = "report" if "`fsl report out`" in message else "resume"
    assert call(command, "out", "--trust-plugins")[0] == 0  # the plugin has changed
    assert json.loads((tmp_path / "out" / "result.json").read_text())["checkpoint_step"] == 12


def test_the_choice_of_execution(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        send = os.kill
        patch.setattr(
            "fsl_core.training.outer_loop.choose_execution",
            lambda run: send(os.getpid(), signal.SIGTERM),
        )
        assert call(*RUN) == (143, "", f"interrupted {BEFORE}\n")
    assert call("resume", "out")[0] == 0


def test_an_evaluation(call, tmp_path: Path):
    plugin = tmp_path / "fslplugin.py"
    text, first = plugin.read_text(), "        task = task or self.task\n"
    sends = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    plugin.write_text(text.replace(first, f"        if split == 'test': {sends}\n{first}"))
    assert call(*RUN) == (143, "", f"interrupted {TRAINED}\n")
    assert not (tmp_path / "out" / "result.json").exists()
    plugin.write_text(text)
    assert call("resume", "out", "--trust-plugins")[0] == 0


def test_loading_plugins(call, tmp_path: Path):
    with (tmp_path / "fslplugin.py").open("a") as file:
        file.write("\nimport os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert call(*RUN) == (130, "", "interrupted. The same command begins again\n")
    assert not (tmp_path / "out").exists()


def test_every_command_is_interruptible_and_can_be_quiet():
    assert len(app.registered_commands) > 25
    for info in app.registered_commands:
        assert inspect.unwrap(info.callback) is not info.callback
        assert "quiet" in inspect.signature(info.callback).parameters


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_without_a_run_says_how_far_it_was(number: str, capsys: pytest.CaptureFixture):
    def work() -> None:
        with on_stderr().work("judging", 9) as advance:
            advance(2)
            os.kill(os.getpid(), getattr(signal, number))

    with pytest.raises(typer.Exit) as ended:
        as_command(work)(quiet=False)
    assert ended.value.exit_code == 128 + getattr(signal, number)
    told = capsys.readouterr().err
    assert told == "interrupted at judging, 2 of 9. The same command begins again\n"


def test_eval(call, monkeypatch: pytest.MonkeyPatch):
    assert call(*RUN)[0] == 0
    interrupt_at(monkeypatch, "fsl_core.engine.evaluation._Judging._judge_block")
    told = "interrupted at evaluating episodes, 0 of 10. The same command begins again\n"
    ended = call("eval", "out")
    assert (ended.code, ended.out, ended.err.splitlines(keepends=True)[-1]) == (130, "", told)


def test_sweep(call, toy_recipe: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt_at(monkeypatch, "fsl_core.sweeping.start.run_jobs")
    ended = call("sweep", toy_recipe, "-s", "matrix={seed: [0, 1]}")
    told = "interrupted. The same command goes on with what is not finished\n"
    assert (ended.code, ended.err[-len(told) :]) == (130, told)


def test_an_ignored_signal_stays_ignored(call, tmp_path: Path):
    """As nohup and background jobs of a script set it."""
    watch(tmp_path, "fsl_step_finished(step)", "send('SIGHUP')")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call(*RUN)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_sets_no_handlers():
    seen = []

    def work() -> None:
        with interruptible() as watched:
            seen.append((watched.stop.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_process_that_is_terminated(call, tmp_path: Path):
    """A signal from outside, amid training: the resumed run has the bits of one left alone."""
    assert call(*RUN[:-1], "whole")[0] == 0
    watch(tmp_path, "fsl_step_finished(step)", WAITS)
    process = subprocess.Popen(
        [sys.executable, "-m", "fsl_core", *RUN, "-s", "outer.checkpoint_every=100"],
        env={**os.environ, "FSL_LOAD_PLUGINS": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "1\n"
    process.terminate()
    (tmp_path / "terminated").touch()
    printed, told = process.communicate(timeout=600)
    resume = "`fsl resume out` goes on from step 1"
    assert (printed, told) == ("", f"interrupted at step 1 of 12; nothing is lost. {resume}\n")
    assert process.returncode == 143
    watch(tmp_path, "fsl_step_finished(step)", "pass")
    assert call("resume", "out", "--trust-plugins")[0] == 0
    for name in ("checkpoints/last.safetensors", "episodes.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

"""What a plugin does to the process while it loads is told of it and undone."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fsl_core.cli import app
from fsl_core.hooks.loader import load
from fsl_core.hooks.plugin import Plugin

WEIGHTING = """
import fsl_core as fsl

class Even(fsl.TaskWeighting):
    name = "even"
    def weigh(self, outcomes):
        return outcomes.losses * 0 + 1 / len(outcomes.losses)

@fsl.hookimpl
def fsl_register_weightings(register):
    register(Even)
"""


def load_text(folder: Path, text: str, name: str = "shaky") -> Plugin:
    file = folder / f"{name}.py"
    file.write_text(text)
    return load(entry_points=False, files=[file]).plugins[-1]


def state() -> tuple:
    """All that is contained, as plain values."""
    kind, keys, *rest = np.random.get_state()
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_rng_state().tolist(),
        (kind, keys.tolist(), *rest),
        random.getstate(),
        dict(os.environ),
        os.getcwd(),
        [known for known in warnings.filters if known[2].__module__ == "builtins"],
        signal.getsignal(signal.SIGTERM),
        sys.stdout,
    )


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import torch; torch.set_default_device('meta')", "torch's default device"),
        ("import torch; torch.set_grad_enabled(False)", "torch's grad mode"),
        (
            "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
            "torch's number of threads",
        ),
        (
            "import torch; torch.use_deterministic_algorithms(True, warn_only=True)",
            "torch's deterministic algorithms",
        ),
        (
            "import torch; torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark",
            "torch.backends.cudnn.benchmark",
        ),
        ("import torch; torch.autograd.set_detect_anomaly(True)", "torch's anomaly mode"),
        ("import torch; torch.manual_seed(3)", "torch's random state"),
        ("import numpy; numpy.random.seed(3)", "the random state of numpy"),
        ("import random; random.seed(3)", "the random state of random"),
        (
            "import os; os.environ['SHAKY'] = '1'; os.environ['HOME'] = 'else'; del os.environ['PATH']",
            "os.environ (HOME, PATH, SHAKY)",
        ),
        ("import os; os.chdir('..')", "the working directory"),
        ("import warnings; warnings.simplefilter('ignore')", "the warning filters"),
        ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "the handler of SIGTERM"),
        ("import io, sys; sys.stdout = io.StringIO()", "sys.stdout"),
    ],
)
@pytest.mark.parametrize("failing", [False, True])
def test_global_state_is_put_back_and_named(
    tmp_path: Path, statement: str, named: str, failing: bool
):
    before = state()
    plugin = load_text(
        tmp_path, statement + WEIGHTING + ("raise RuntimeError('and more')" if failing else "")
    )
    assert state() == before
    assert f"changed {named} while it loaded. It was put back" in plugin.notes
    assert plugin.status == ("failed" if failing else "ok")


def test_a_default_device_stated_before_stays(tmp_path: Path):
    with torch.device("meta"):
        load_text(tmp_path, "import torch; torch.set_default_device('cpu')")
        assert torch.get_default_device() == torch.device("meta")
    assert torch.get_default_device() == torch.device("cpu")


def test_state_that_a_hook_changes_is_put_back(tmp_path: Path):
    text = WEIGHTING.replace(
        "    register(Even)",
        "    import torch; torch.set_default_dtype(torch.float16); register(Even)",
    )
    plugin = load_text(tmp_path, text)
    assert (plugin.status, plugin.offers) == ("ok", [("weighting", "even")])
    assert plugin.notes == ["changed torch's default dtype while it loaded. It was put back"]
    assert torch.get_default_dtype() == torch.float32


def test_a_warning_filter_for_one_message_stays(tmp_path: Path):
    with warnings.catch_warnings():
        plugin = load_text(
            tmp_path, "import warnings; warnings.filterwarnings('ignore', 'shaky .* again')"
        )
        assert plugin.notes == []
        warnings.warn("shaky as ever again", stacklevel=1)
        with pytest.raises(UserWarning, match="sound"):
            warnings.warn("sound", stacklevel=1)


def test_a_quiet_plugin_has_no_notes(tmp_path: Path):
    assert load_text(tmp_path, WEIGHTING).notes == []


@pytest.mark.parametrize(
    "statement",
    [
        "print('buy', 'this')",
        "import sys; sys.stderr.write('buy\\n  this\\n')",
        "import sys; sys.stdout.writelines(['buy ', 'this'])",
        "import os; os.write(1, b'buy '); os.write(2, b'this')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(\"buy this\")'])",
    ],
)
def test_printed_text_is_kept_and_told(
    tmp_path: Path, statement: str, capfd: pytest.CaptureFixture[str]
):
    plugin = load_text(tmp_path, statement + WEIGHTING)
    assert plugin.notes == ["printed while it loaded: buy this"]
    assert capfd.readouterr() == ("", "")


def test_long_text_is_cut(tmp_path: Path):
    (note,) = load_text(tmp_path, "print('=' * 500)").notes
    assert note == f"printed while it loaded: {'=' * 200} …"


def test_a_log_handler_made_while_loading_works_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = "import logging; handler = logging.StreamHandler(); logging.getLogger('shaky').addHandler(handler)"
    try:
        assert load_text(tmp_path, text).notes == []
        logging.getLogger("shaky").warning("later")
        assert capsys.readouterr().err == "later\n"
    finally:
        logging.getLogger("shaky").handlers.clear()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(3)", "called sys.exit(3). A plugin that raises what is wrong"),
        (
            "import os; os._exit(3)",
            "called os._exit(3) while it loaded. A plugin that raises what is wrong",
        ),
        (
            "from os import _exit; _exit(0)",
            "called os._exit(0) while it loaded. A plugin that raises what is wrong",
        ),
        (
            "class End(BaseException): pass\nraise End('of days')",
            "fsl_plugin_file_shaky.End: of days",
        ),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("x = = 1", "SyntaxError: invalid syntax"),
    ],
)
def test_what_ends_a_process_ends_only_the_plugin(tmp_path: Path, text: str, reason: str):
    leave = os._exit
    plugin = load_text(tmp_path, text)
    assert plugin.status == "failed"
    assert plugin.reason.startswith(reason)
    assert os._exit is leave
    assert "fsl_plugin_file_shaky" not in sys.modules


def test_an_exit_kept_from_loading_works_afterwards(tmp_path: Path):
    """As in a worker process that ends the way multiprocessing does."""
    (tmp_path / "kept.py").write_text("from os import _exit as leave")
    code = "import sys; from pathlib import Path; from fsl_core.hooks.loader import load\n"
    code += "load(entry_points=False, files=[Path('kept.py')]); sys.modules['fsl_plugin_file_kept'].leave(7)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 7


def test_interrupting_is_no_fault_of_a_plugin(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        load_text(tmp_path, "raise KeyboardInterrupt")
    assert torch.get_default_dtype() == torch.float32


def test_a_slow_plugin_is_timed(tmp_path: Path):
    plugin = load_text(tmp_path, "import time; time.sleep(0.2)")
    assert plugin.seconds >= 0.2
    assert not Plugin("early", "early", "1", seconds=0.9).slow
    assert Plugin("late", "late", "1", seconds=1.1).slow


def test_torch_is_not_charged_to_the_first_plugin_that_imports_it():
    code = """
import time
from fsl_core.hooks.loader import load
started = time.perf_counter()
plugins = load(entry_points=False).plugins
print(len(plugins), time.perf_counter() - started, sum(plugin.seconds for plugin in plugins))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, whole, charged = map(float, done.stdout.split())
    assert count >= 10
    assert charged < whole / 2


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "loud.py").write_text("print('{')" + WEIGHTING)
    hook = "from fsl_core import hookimpl\n"
    (folder / "broken.py").write_text(f"{hook}import nowhere_to_be_found")
    (folder / "leaving.py").write_text(f"{hook}import os; os._exit(1)")
    (folder / "seeding.py").write_text(f"{hook}import torch; torch.manual_seed(0)")
    (folder / "test_loud.py").write_text(f"{hook}raise SystemExit('executed')")
    return folder


def test_commands_tell_and_their_json_stays_json(zoo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    listed = CliRunner().invoke(app, ["list", "weightings", "--plugins-dir", str(zoo), "--json"])
    assert [row["name"] for row in json.loads(listed.stdout)] == ["even", "uniform"]
    for line in [
        f"--plugins-dir {zoo}: broken.py, leaving.py, loud.py, seeding.py; "
        "passed over: test_loud.py (a test, or without hookimpl)",
        f"plugin loud ({zoo / 'loud.py'}): printed while it loaded: {{",
        f"plugin broken ({zoo / 'broken.py'}) failed to load: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        f"plugin leaving ({zoo / 'leaving.py'}) failed to load: called os._exit(1) while it loaded. ",
        f"plugin seeding ({zoo / 'seeding.py'}): changed torch's random state while it loaded. It was put back",
    ]:
        assert line in listed.stderr
    rows = {
        row["name"]: row
        for row in json.loads(
            CliRunner().invoke(app, ["plugins", "--plugins-dir", str(zoo), "--json"]).stdout
        )
    }
    assert rows["loud"]["notes"] == ["printed while it loaded: {"]
    assert (rows["loud"]["hook_api"], rows["loud"]["slow"]) == (1, False)
    assert rows["loud"]["seconds"] > 0
    monkeypatch.setattr("fsl_core.hooks.plugin.SLOW", 0.0)
    table = CliRunner().invoke(app, ["plugins", "--plugins-dir", str(zoo)]).stdout
    assert "printed while it loaded: {" in table
    assert " slow" in table


def test_tracing_says_who_is_loading_and_who_is_called(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FSL_TRACE_PLUGINS", "1")
    (zoo / "watching.py").write_text(
        "import fsl_core as fsl\n@fsl.hookimpl\ndef fsl_step_finished(step): pass"
    )
    loaded = load(entry_points=False, files=[zoo / "loud.py", zoo / "watching.py"])
    loaded.observers.tell("fsl_step_finished", run=None, step=3, metrics={"loss": 0.5})
    told = capsys.readouterr().err
    loud = f"plugin loud ({zoo / 'loud.py'})"
    assert (
        f"fsl trace: loading {loud}\nfsl trace: fsl_register_weightings of {loud}\nfsl trace: {loud}: ok, 0."
        in told
    )
    assert "s; printed while it loaded: {\n" in told
    assert (
        f"fsl trace: fsl_step_finished(step=3, metrics={{'loss': 0.5}}) of plugin watching ({zoo / 'watching.py'}): 0."
        in told
    )

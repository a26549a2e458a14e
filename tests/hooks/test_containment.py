"""What a plugin does to the process while it loads is told of it and undone."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import warnings
from pathlib import Path

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
    return (
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [known for known in warnings.filters if known[2].__module__ == "builtins"],
        sys.stdout,
        sys.stderr,
    )


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("import torch; torch.set_default_dtype(torch.float64)", "torch's default dtype"),
        ("import torch; torch.manual_seed(3)", "torch's random state"),
        ("import torch; torch.rand(3)", "torch's random state"),
        ("import random; random.seed(3)", "the random state of random"),
        ("import warnings; warnings.simplefilter('ignore')", "the warning filters"),
        ("import io, sys; sys.stdout = io.StringIO()", "sys.stdout"),
        ("import io, sys; sys.stderr = io.StringIO()", "sys.stderr"),
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
    ],
)
def test_printed_text_is_kept_and_told(
    tmp_path: Path, statement: str, capsys: pytest.CaptureFixture[str]
):
    plugin = load_text(tmp_path, statement + WEIGHTING)
    assert plugin.notes == ["printed while it loaded: buy this"]
    assert capsys.readouterr() == ("", "")


def test_long_text_is_cut(tmp_path: Path):
    (note,) = load_text(tmp_path, "print('=' * 500)").notes
    assert note == f"printed while it loaded: {'=' * 200} …"


def test_a_log_handler_made_while_loading_works_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = "import logging; logging.getLogger('shaky').addHandler(logging.StreamHandler())"
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
            "class End(BaseException): pass\nraise End('of days')",
            "fsl_plugin_file_shaky.End: of days",
        ),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("x = = 1", "SyntaxError: invalid syntax"),
    ],
)
def test_an_exception_ends_only_the_plugin(tmp_path: Path, text: str, reason: str):
    plugin = load_text(tmp_path, text)
    assert plugin.status == "failed"
    assert plugin.reason.startswith(reason)
    assert "fsl_plugin_file_shaky" not in sys.modules


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
started = time.perf_counter()
from fsl_core.hooks.loader import load
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
    (folder / "leaving.py").write_text(f"{hook}import sys; sys.exit(1)")
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
        f"plugin broken ({zoo / 'broken.py'}) failed to load: ModuleNotFoundError: "
        "No module named 'nowhere_to_be_found'",
        f"plugin leaving ({zoo / 'leaving.py'}) failed to load: called sys.exit(1). ",
        f"plugin seeding ({zoo / 'seeding.py'}): changed torch's random state while it loaded. "
        "It was put back",
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
        f"fsl trace: loading {loud}\nfsl trace: fsl_register_weightings of {loud}\n"
        f"fsl trace: {loud}: ok, 0."
    ) in told
    assert "s; printed while it loaded: {\n" in told
    assert (
        "fsl trace: fsl_step_finished(step=3, metrics={'loss': 0.5}) of plugin watching "
        f"({zoo / 'watching.py'}): 0."
    ) in told

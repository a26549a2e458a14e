"""What every command waits for before it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SLOW = ("matplotlib", "pandas", "scipy", "sklearn", "torch._dynamo", "torchvision")
LOAD = f"""
import sys
from fsl_core.hooks.loader import load
load()
print(*(name for name in {SLOW!r} if name in sys.modules))
"""


def in_a_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=folder,
        text=True,
        check=False,
        timeout=600,
    )


def test_loading_every_plugin_imports_nothing_slow():
    """Those that need one of these import it when they are asked for something."""
    ended = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=600, check=True
    )
    assert ended.stdout.split() == [], ended.stderr


def test_what_a_run_imports_leaves_out_statistics():
    """`scipy.stats` would take as long as half of torch, and a run needs none of it."""
    code = "import sys, fsl_core.api; sys.exit('scipy.stats' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=600)
    assert ended.returncode == 0


def test_a_run_by_loop_and_its_judging_need_no_compiler(tmp_path: Path):
    """`torch._dynamo` takes a second, and torch's own optimizers import it."""
    recipe = {
        "episodes": {"name": "glyphs", "n_way": 2, "n_shot": 1, "n_query": 1},
        "backbone": {"name": "conv4", "channels": 2},
        "adapter": {"name": "nearest-centroid"},
        "outer": {"steps": 2, "validate_every": 1, "validate_episodes": 2},
        "execution": {"mode": "loop"},
        "evaluate": {"episodes": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code = """
import sys
from contextlib import suppress
from fsl_core.cli import main
for words in ("run recipe.yaml --out run", "eval run"):
    sys.argv = ["fsl", *words.split(), "--device", "cpu", "--quiet"]
    with suppress(SystemExit):
        main()
    print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    ended = in_a_process(code, tmp_path)
    assert ended.stdout.splitlines().count("True False") == 2, ended.stdout + ended.stderr
    assert (tmp_path / "run" / "result.json").is_file()


def test_that_nothing_is_there_is_said_before_torch_is_loaded(tmp_path: Path):
    """Else the one line would come after two seconds."""
    commands = ("run", "sweep", "search", "resume", "eval", "report", "reuse", "patterns", "watch")
    code = f"""
import sys
from contextlib import suppress
from fsl_core.cli import main
for words in [*({commands!r}), "keep --out kept", "predict --query . --support ."]:
    sys.argv = ["fsl", *words.split(), "absent"]
    with suppress(SystemExit):
        main()
print(sys.modules.keys() & {{"torch", "numpy"}})
"""
    ended = in_a_process(code, tmp_path)
    assert ended.stdout == "set()\n", ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("absent: ")]) == 11

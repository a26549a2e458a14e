"""What every command waits for before it begins."""

from __future__ import annotations

import subprocess
import sys

SLOW = ("matplotlib", "pandas", "scipy", "sklearn", "torch._dynamo", "torchvision")
LOAD = f"""
import sys
from fsl_core.hooks.loader import load
load()
print(*(name for name in {SLOW!r} if name in sys.modules))
"""


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

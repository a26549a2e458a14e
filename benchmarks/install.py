"""Fills the environment of `make bench`: this project with every plugin, then each peer by itself.

    python benchmarks/install.py        exit status 1 if a peer could not be installed

A peer that fails is reported in one line, which is kept in `<environment>/peers.json` for the
report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(sys.prefix) / "peers.json"
CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
PIP = ["pip", "install", "--quiet", "--disable-pip-version-check"]


def main() -> int:
    KEPT.unlink(missing_ok=True)
    folders = [ROOT, *(file.parent for file in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
    project = [part for folder in folders for part in ("-e", str(folder))]
    if reason := _pip(*project, "pytest"):
        sys.exit(f"benchmarks: the project itself could not be installed: {reason}")
    lines = (ROOT / "benchmarks" / "requirements.txt").read_text("utf-8").splitlines()
    reasons = {
        line.partition("==")[0]: _peer(line) for line in lines if line and not line.startswith("#")
    }
    failed = {name: reason for name, reason in reasons.items() if reason}
    KEPT.write_text(json.dumps(failed, indent=1), encoding="utf-8")
    for name, reason in failed.items():
        print(f"benchmarks: {name} is left out: {reason}")
    return 1 if failed else 0


def _peer(requirement: str) -> str:
    if requirement.startswith("learn2learn"):  # which pip alone cannot build
        return _run("fsl_learn2learn.install")
    return _pip(requirement)


def _pip(*arguments: str) -> str:
    """Install; the reason in one line if it fails, else nothing."""
    return _run(*PIP, *arguments)


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, *CONSTRAINTS],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    errors = [
        line for line in done.stderr.splitlines() if "error" in line.lower()
    ] or done.stderr.splitlines()
    return errors[-1].strip() if errors else f"pip ended with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of one meta-gradient, each contender in a process of its own.

    python -m benchmarks.memory CONTENDER TASKS STEPS CHANNELS        bytes, on standard output

Counted is the resident memory above what the process held, weights and episodes included, before
its first meta-gradient. The system's high-water mark is reset after that first one, so that
compiling or warming up does not count but what they keep does. Linux only: elsewhere the mark
cannot be reset.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import problems
from benchmarks.contenders import contender, contenders
from benchmarks.race import LeftOut
from benchmarks.settings import Settings

CASES = {"1 step": 1, "5 steps": 5}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(settings: Settings) -> dict:
    """Peak memory of one second-order MAML meta-gradient, Conv4-64, 16 tasks.

    28x28, 5-way 1-shot 15-query.
    """
    if not RESET.exists():
        raise LeftOut("peak memory is read from /proc, which is not here")
    tasks, channels = (2, 4) if settings.quick else (16, 64)
    entered, left_out = contenders(problems.omniglot(tasks=1, channels=4), slow_to_start=False)
    cases: dict[str, dict[str, float]] = {}
    for label, steps in list(CASES.items())[: 1 if settings.quick else None]:
        cases[label] = {}
        for name in list(entered)[: 1 if settings.quick else None]:
            found = _in_own_process(name, tasks, steps, channels)
            if isinstance(found, int):
                cases[label][name] = found
            else:
                left_out[f"{name}, {label}"] = found
    return {"bytes": cases, "left_out": left_out}


def _in_own_process(name: str, tasks: int, steps: int, channels: int) -> int | str:
    arguments = [name, str(tasks), str(steps), str(channels), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    return int(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def peak_bytes(name: str, tasks: int, steps: int, channels: int) -> int:
    """Above what was held before the first meta-gradient, while computing the second."""
    work = contender(problems.omniglot(tasks=tasks, steps=steps, channels=channels), name)
    gc.collect()
    before = _status("VmRSS")
    work()
    gc.collect()
    RESET.write_text("5")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(peak_bytes(sys.argv[1], *map(int, sys.argv[2:5])))

"""A contender in a process of its own, which computes when it is told to.

So nobody shares memory or settings with another.

    python -m benchmarks.contestant PROBLEM 'ours, loop'

reads numbers of calls, one a line, and answers each with the seconds a call took. PROBLEM is JSON:
{"make": "omniglot", "sizes": {"tasks": 16}, "device": "cpu", "threads": 2}
"""

from __future__ import annotations

import json
import subprocess
import sys
import timeit
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch


class Contestant:
    """Another process that waits for its turn. A context manager, because it has to end."""

    def __init__(self, make: str, sizes: dict, device: str, name: str):
        problem = json.dumps(
            {"make": make, "sizes": sizes, "device": device, "threads": torch.get_num_threads()}
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestant", problem, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None  # both are pipes
        assert answers is not None
        self._orders, self._answers = orders, answers

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may have failed
            self._orders.close()
        self._process.wait()

    def __call__(self) -> None:
        self.timed(1)

    def timed(self, calls: int) -> float:
        """Seconds a call, by the clock of that process."""
        self._orders.write(f"{calls}\n")
        self._orders.flush()
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(
                f"a contender's process ended with exit status {self._process.wait()}"
            )
        return float(answer)


def serve(problem: dict, name: str, answers: TextIO) -> None:
    from benchmarks import problems
    from benchmarks.contenders import contender
    from fsl_core.data.vision import torchvision
    from fsl_core.engine.memory import keep_freed_memory

    # Beside a CPU-only torch it has to be imported through a detour, and peers import it plainly.
    torchvision()
    torch.set_num_threads(problem["threads"])
    torch.backends.cudnn.allow_tf32 = False  # all compute in float32
    if name.startswith("ours"):
        keep_freed_memory()  # as `fsl run` does
    make = getattr(problems, problem["make"])
    work = contender(make(**problem["sizes"]).to(torch.float32, problem["device"]), name)
    for line in sys.stdin:
        calls = int(line)
        seconds = timeit.timeit(lambda: _finished(work), number=calls) / calls
        print(seconds, flush=True, file=answers)


def _finished(work) -> None:
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is not an answer
    serve(json.loads(sys.argv[1]), sys.argv[2], answers)

"""What a run of the benchmarks is asked for, and what it ran on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    quick: tiny sizes, a smoke test whose figures mean nothing.
    root: folder of Omniglot's zip files, as `episodes.root` of a recipe; None: FSL_DATA or the
        cache.
    budget: seconds for the rounds of one race.
    """

    quick: bool = False
    root: Path | None = None
    budget: float = 30.0

    @property
    def rounds(self) -> tuple[int, int]:
        return (2, 3) if self.quick else (5, 200)

    @property
    def block(self) -> float:
        """Seconds that a contender's calls of one round fill at least."""
        return 0.0 if self.quick else 0.2


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def name_of(machine: dict) -> str:
    """What figures are said to be measured on: the GPU if there is one, else the processor.

    >>> name_of({"processor": "Intel(R) Xeon(R) Processor", "gpu": "none"})
    'Intel Xeon'
    """
    if machine["gpu"] != "none":
        return machine["gpu"]
    return machine["processor"].replace("(R)", "").removesuffix(" Processor")


def same_machine(one: dict, other: dict) -> bool:
    """Whether figures of one replace those of the other; otherwise both are kept."""
    return all(one.get(key) == other.get(key) for key in ("processor", "threads", "gpu"))


def watch_others() -> Callable[[], float | None]:
    """Begin to watch; the function tells how many cores others kept busy since then, on average.

    None where the system does not tell. Children count as ours once they have ended.
    """
    before, started = _busy_seconds(), time.monotonic()

    def others() -> float | None:
        now, elapsed = _busy_seconds(), time.monotonic() - started
        if before is None or now is None or elapsed == 0:
            return None
        return max(0.0, (now - before) / elapsed)

    return others


def _busy_seconds() -> float | None:
    """Seconds of all cores together that were neither idle nor spent by us and our children."""
    with suppress(OSError, ValueError, IndexError):
        counted = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, soft_irq, _ = (int(ticks) for ticks in counted)
        busy = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

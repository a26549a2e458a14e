"""What a run of the benchmarks is asked for, and what it ran on."""

from __future__ import annotations

import platform
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


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

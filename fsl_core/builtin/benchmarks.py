"""The benchmark tasks that come with core: a file for each in `fsl_core/benchmarks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsl_core as fsl

FOLDER = Path(__file__).parents[1] / "benchmarks"


def _giver(file: Path) -> Callable[[], Path]:
    def give() -> Path:
        return file

    give.__doc__ = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return give


@fsl.hookimpl
def fsl_register_benchmarks(register):
    for file in sorted(FOLDER.glob("*.yaml")):
        register(_giver(file), file.stem)
